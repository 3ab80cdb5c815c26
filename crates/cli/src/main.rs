//! The firn command: words, flags, tables and progress over the engine.
//!
//! One file per object, each with its verbs as clap knows them and what they do. What is the same
//! everywhere stands in a file of its own: addresses, sizes, output, progress, how it ends.

mod access;
mod activate;
mod address;
mod changes;
mod command;
mod cow;
mod exit;
mod generate;
mod image;
mod job;
mod keep;
mod log;
mod map;
mod metadata;
mod origin;
mod output;
mod pool;
mod progress;
mod repo;
mod serve;
mod size;
mod snapshot;
mod table;
mod transfer;
mod volume;

use std::process::ExitCode;

use clap::Parser;

use crate::command::{Firn, Global, Object};
use crate::exit::Outcome;
use crate::output::Output;

fn main() -> ExitCode {
    let firn = match Firn::try_parse() {
        Ok(firn) => firn,
        Err(error) => return exit::usage(&error),
    };
    log::start(firn.global.verbose, firn.global.quiet);
    exit::code(run(&firn))
}

fn run(firn: &Firn) -> Outcome {
    let Global { json, quiet, verbose } = firn.global;
    let output = Output::new(json, quiet, verbose > 0);
    match &firn.object {
        Object::Pool(verb) => pool::run(verb, output),
        Object::Volume(verb) => volume::run(verb, output),
        Object::Snapshot(verb) => snapshot::run(verb, output),
        Object::Image(verb) => image::run(verb, output),
        Object::Cow(verb) => cow::run(verb, output),
        Object::Repo(verb) => repo::run(verb, output),
        Object::Job(verb) => job::run(verb, output),
        Object::Serve(serve) => serve::run(serve, output),
        Object::Completions(completions) => generate::completions(completions),
        Object::GenerateMan(pages) => generate::pages(pages),
    }
}
