//! Serves one file over NBD:
//!
//! ```text
//! serve_file FILE SOCKET [cached] [read-only]
//! serve_file FILE tcp:HOST:PORT [cached] [read-only]
//! ```
//!
//! Without `cached` the file is opened with O_DIRECT. `FIRN_IO=blocking` does without io_uring.

use std::path::Path;
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{Error, ErrorKind, Result};
use nbd::{Export, ExportTable, Listener, Server, ServerOptions};

fn main() {
    if let Err(error) = serve() {
        eprintln!("serve_file: {error}");
        std::process::exit(1);
    }
}

fn serve() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [path, address, options @ ..] = &words[..] else {
        return Err(Error::new(ErrorKind::Invalid, "arguments", "are not FILE and SOCKET"));
    };
    let (mut cache, mut read_only) = (CacheMode::Direct, false);
    for option in options {
        match option.as_str() {
            "cached" => cache = CacheMode::Cached,
            "read-only" => read_only = true,
            _ => return Err(Error::new(ErrorKind::Invalid, option, "is no option")),
        }
    }
    let file = HostFile::open(Path::new(path), FileOptions { cache, read_only })?;
    let size = file.size();
    let export = Export::new("", Arc::new(file))?;
    let listener = match address.strip_prefix("tcp:") {
        Some(address) => Listener::tcp(address)?,
        None => Listener::unix(address)?,
    };
    let source = Arc::new(ExportTable::single(export));
    let _server = Server::start(vec![listener], source, ServerOptions::default())?;
    println!("serving {path} ({size}) at {address}");
    loop {
        std::thread::park();
    }
}
