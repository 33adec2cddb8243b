//! `docs/rules.md`, generated from the rules. Test: `passes/tests/rules_page.rs`.

use crate::eqsat::rules;
use crate::fusion;
use crate::lower::Rule;
use crate::numerics::Numerics;
use crate::siblings;
use crate::{attention_projection, attention_prologue};
use std::fmt::Write;

const HEAD: &str = "# Rules

Generated from `passes/src/eqsat/rules/`, `passes/src/fusion/rules/` and `passes/src/lower/rules.rs`; `cargo xtask bless` writes it again.

`weft compile --disable NAME` leaves a rule or fusion out, `--numerics CLASS` all of the classes above CLASS:

| class | what a rule of it may change |
| --- | --- |
";

fn meaning(class: Numerics) -> &'static str {
    match class {
        Numerics::Exact => "nothing: same rounding points, same order of sums",
        Numerics::Reassociates => "the order of sums, at the same precision",
        Numerics::ChangesPrecision => "where values are rounded",
    }
}

/// Text of a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// The page.
pub fn page() -> String {
    let mut out = String::from(HEAD);
    // Writing to a string does not fail.
    for class in Numerics::ALL {
        let _ = writeln!(out, "| `{class}` | {} |", meaning(class));
    }
    out.push_str(
        "\n## Rewrites\n\nEach adds an equal form to a block's e-graph; the cheapest form is taken. Stages run one \
         after the other, each until nothing new is found.\n\n| stage | rule | class | before → after | patterns \
         |\n| --- | --- | --- | --- | --- |\n",
    );
    for (stage, rules) in rules::stages().iter().enumerate() {
        for r in rules {
            let patterns: Vec<String> = r.patterns.iter().map(|p| format!("`{p}`")).collect();
            let (summary, patterns) = (cell(r.summary), patterns.join("<br>"));
            let _ =
                writeln!(out, "| {} | `{}` | `{}` | {summary} | {patterns} |", stage + 1, r.name, r.numerics);
        }
    }
    out.push_str(
        "\nWhat needs no rule (tests: `passes/tests/sharing.rs`): common subexpressions are one class of the e-graph; \
         what no output needs is neither extracted nor lowered; a value of one float operation at most that several \
         kernels need is made again in each of them, and no array.\n",
    );
    out.push_str(
        "\n## Fusions\n\nA site is matched when all its ops are in one kernel of the plan. `weft compile` prints \
         matched sites, all sites, and why the others did not match; `--require NAME=all` fails where one did \
         not.\n\n| fusion | class | what becomes one kernel | patterns |\n| --- | --- | --- | --- |\n",
    );
    for f in fusion::all() {
        let few: Vec<String> = f.patterns.iter().take(4).map(|p| format!("`{p}`")).collect();
        let more = if f.patterns.len() > 4 { "<br>…" } else { "" };
        let (summary, patterns) = (cell(f.summary), few.join("<br>"));
        let _ = writeln!(out, "| `{}` | `{}` | {summary} | {patterns}{more} |", f.name, f.numerics);
    }
    let (name, class, summary) =
        (attention_prologue::NAME, attention_prologue::NUMERICS, attention_prologue::SUMMARY);
    let _ = writeln!(
        out,
        "\n## Attention's rows\n\n`{name}` (`{class}`): {summary}. Its sites are attentions whose queries a loop of a \
         row a head makes; it is counted, required and disabled as fusions are."
    );
    let (name, class, summary) =
        (attention_projection::NAME, attention_projection::NUMERICS, attention_projection::SUMMARY);
    let _ = writeln!(
        out,
        "\n## Attention's projection\n\n`{name}` (`{class}`): {summary}. Its sites are attentions whose outputs a plain \
         product alone reads; it is counted, required and disabled as fusions are."
    );
    let (name, class, summary) = (siblings::NAME, siblings::NUMERICS, siblings::SUMMARY);
    let _ = writeln!(
        out,
        "\n## Merged loops\n\n`{name}` (`{class}`): {summary}. Its sites are loops that can follow an earlier one; it is \
         counted, required and disabled as fusions are."
    );
    out.push_str(
        "\n## Lowering\n\nWhat made a kernel, in its header and in `weft inspect --explain`. These follow the fusions \
         that are on: none of a class above `--numerics` is used.\n\n| rule | class | what is one kernel |\n| --- | --- \
         | --- |\n",
    );
    for r in Rule::ALL {
        let _ = writeln!(out, "| `{}` | `{}` | {} |", r.name(), r.numerics(), r.summary());
    }
    out
}
