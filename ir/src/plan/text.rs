//! `plan.ron`: RON with one buffer, work, kernel, dispatch or launch a line, so that it reads and diffs
//! as a table.

use super::{Body, Entry, Plan};
use serde::Serialize;
use std::fmt::Write;

impl Plan {
    /// As RON text.
    ///
    /// # Errors
    /// A value that RON cannot express.
    pub fn to_ron(&self) -> Result<String, ron::Error> {
        let mut out = String::from("(\n");
        field(&mut out, 1, "target", &self.target)?;
        field(&mut out, 1, "dtype", &self.dtype)?;
        field(&mut out, 1, "opt_level", &self.opt_level)?;
        field(&mut out, 1, "max_seq", &self.max_seq)?;
        field(&mut out, 1, "max_batch", &self.max_batch)?;
        list(&mut out, 1, "buffers", &self.buffers, line)?;
        list(&mut out, 1, "works", &self.works, line)?;
        list(&mut out, 1, "kernels", &self.kernels, line)?;
        list(&mut out, 1, "bodies", &self.bodies, body)?;
        list(&mut out, 1, "entries", &self.entries, entry)?;
        if let Some(generation) = &self.generation {
            field(&mut out, 1, "generation", &Some(generation))?;
        }
        out.push_str(")\n");
        Ok(out)
    }

    /// From RON text.
    ///
    /// # Errors
    /// Text that is not a plan, with line and column.
    pub fn from_ron(text: &str) -> Result<Plan, ron::error::SpannedError> {
        ron::from_str(text)
    }
}

fn indent(out: &mut String, depth: usize) {
    (0..depth).for_each(|_| out.push_str("  "));
}

fn compact<T: Serialize>(value: &T) -> Result<String, ron::Error> {
    let config = ron::ser::PrettyConfig::new().depth_limit(0);
    ron::ser::to_string_pretty(value, config)
}

fn field<T: Serialize>(out: &mut String, depth: usize, name: &str, value: &T) -> Result<(), ron::Error> {
    indent(out, depth);
    writeln!(out, "{name}: {},", compact(value)?)?;
    Ok(())
}

fn list<T>(
    out: &mut String,
    depth: usize,
    name: &str,
    items: &[T],
    item: impl Fn(&mut String, usize, &T) -> Result<(), ron::Error>,
) -> Result<(), ron::Error> {
    indent(out, depth);
    writeln!(out, "{name}: [")?;
    items.iter().try_for_each(|x| item(out, depth + 1, x))?;
    indent(out, depth);
    out.push_str("],\n");
    Ok(())
}

fn line<T: Serialize>(out: &mut String, depth: usize, value: &T) -> Result<(), ron::Error> {
    indent(out, depth);
    writeln!(out, "{},", compact(value)?)?;
    Ok(())
}

fn body(out: &mut String, depth: usize, b: &Body) -> Result<(), ron::Error> {
    indent(out, depth);
    out.push_str("(\n");
    list(out, depth + 1, "dispatches", &b.dispatches, line)?;
    list(out, depth + 1, "launches", &b.launches, line)?;
    indent(out, depth);
    out.push_str("),\n");
    Ok(())
}

fn entry(out: &mut String, depth: usize, e: &Entry) -> Result<(), ron::Error> {
    indent(out, depth);
    out.push_str("(\n");
    field(out, depth + 1, "name", &e.name)?;
    field(out, depth + 1, "role", &e.role)?;
    field(out, depth + 1, "bind", &e.bind)?;
    field(out, depth + 1, "body", &e.body)?;
    field(out, depth + 1, "kernels", &e.kernels)?;
    field(out, depth + 1, "arena", &e.arena)?;
    if !e.scratch.is_empty() {
        field(out, depth + 1, "scratch", &e.scratch)?;
    }
    field(out, depth + 1, "arena_bytes", &e.arena_bytes)?;
    field(out, depth + 1, "unshared_bytes", &e.unshared_bytes)?;
    indent(out, depth);
    out.push_str("),\n");
    Ok(())
}
