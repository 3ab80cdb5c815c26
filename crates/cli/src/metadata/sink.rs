//! Where long results go: stdout, or a file that has its name only once it is complete.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;

use block_types::{Error, Result};
use volume::NewFile;

use crate::exit::{Failure, Outcome};

/// Has `work` write to the file, which may exist only with `force`, or to stdout without one.
pub(crate) fn write(
    file: Option<&Path>,
    force: bool,
    work: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Outcome<()> {
    match file {
        Some(file) => Ok(write_file(file, force, work)?),
        None => write_stdout(work),
    }
}

fn write_file(
    name: &Path,
    force: bool,
    work: impl FnOnce(&mut dyn Write) -> Result<()>,
) -> Result<()> {
    let new = NewFile::create(name, force)?;
    let failed = |doing: &str, error| Error::io(new.path().display().to_string(), doing, error);
    let mut file = File::options()
        .write(true)
        .open(new.path())
        .map_err(|error| failed("cannot be opened", error))?;
    work(&mut file)?;
    file.sync_all().map_err(|error| failed("cannot be flushed", error))?;
    new.publish()
}

fn write_stdout(work: impl FnOnce(&mut dyn Write) -> Result<()>) -> Outcome<()> {
    // Past the line buffer: what writes here has large buffers of its own.
    let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(Failure::of_output)?;
    let mut reader = Reader { file: stdout.into(), gone: false };
    let done = work(&mut reader);
    if reader.gone {
        return Err(Failure::NoReader);
    }
    Ok(done?)
}

/// Stdout, and whether its reader went away, which is no failure.
struct Reader {
    file: File,
    gone: bool,
}

impl Write for Reader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes);
        self.gone |= written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe);
        written
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
