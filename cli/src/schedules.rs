//! Files of measured schedules: what `weft tune` writes and `--schedules` reads.

use crate::errors::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_frontend::read::{SETTINGS, bounded_text};
use weft_passes::schedule::database::Database;

/// Reads a file.
///
/// # Errors
/// A file that cannot be read, or is not a database.
pub fn read(path: &Path) -> Result<Database> {
    let text = bounded_text(path, SETTINGS)?;
    Database::parse(&text).map_err(|why| {
        Error::input(format!(
            "{}: not measured schedules: {why}; take the line out, or measure anew with weft tune",
            path.display()
        ))
    })
}

/// Writes a file whole or not at all.
///
/// # Errors
/// A place that cannot be written.
pub fn write(path: &Path, database: &Database) -> Result<()> {
    let text = database.text().map_err(Error::failed)?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    fs::write(&partial, text).map_err(|e| Error::io(&partial, "write", &e))?;
    fs::rename(&partial, path).map_err(|e| Error::io(path, "write", &e))?;
    Ok(())
}

/// The schedules that compiling looks into: those of a file, else those that come with Weft.
///
/// # Errors
/// As [`read`].
pub fn chosen(path: Option<&Path>) -> Result<Arc<Database>> {
    let database = match path {
        Some(path) => read(path)?,
        None => Database::shipped().map_err(Error::failed)?,
    };
    Ok(Arc::new(database))
}
