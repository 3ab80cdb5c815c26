//! The library that is preloaded into the guest kernel; see the head of `shim.c` for why.

use std::path::PathBuf;
use std::{env, fs};

use block_types::{Error, ErrorKind, Result, crc32c};

use crate::peer::Peer;

const SOURCE: &str = include_str!("shim.c");

/// The compiled library; built beside the running program if it is not there yet.
pub(super) fn library() -> Result<PathBuf> {
    let program = env::current_exe()
        .map_err(|error| Error::io("the running program", "cannot be found", error))?;
    let folder = program.parent().expect("a program's file lies in a folder");
    let library = folder.join(format!("xstate-shim-{:08x}.so", crc32c(SOURCE.as_bytes())));
    if library.exists() {
        return Ok(library);
    }
    // Several test processes may build it at once: each its own file, renamed when whole.
    let unfinished = tempfile::Builder::new()
        .prefix("xstate-shim-")
        .tempfile_in(folder)
        .map_err(|error| Error::io(folder.display().to_string(), "cannot be written", error))?;
    let outcome = Peer::find("cc")?
        .args(["-O2", "-Wall", "-shared", "-fPIC", "-x", "c", "-", "-o"])
        .arg(unfinished.path())
        .input(SOURCE)
        .run();
    if outcome.code() != Some(0) {
        return Err(Error::new(ErrorKind::Unsupported, "the guest's shim", outcome.to_string())
            .advise("install the Debian packages gcc and libc6-dev"));
    }
    let (_, path) = unfinished.keep().map_err(|error| {
        Error::io(folder.display().to_string(), "cannot be written", error.error)
    })?;
    fs::rename(&path, &library)
        .map_err(|error| Error::io(library.display().to_string(), "cannot be written", error))?;
    Ok(library)
}
