//! `firn pool set` and `firn pool events`: how a pool behaves, and what it tells.

use std::path::PathBuf;

use block_types::{ByteCount, Error, ErrorKind, Result};
use clap::{Args, ValueEnum};
use volume::{AutoGrow, DiscardSetting, EventInfo, NoSpace, Settings};

use crate::access::{ask, change};
use crate::exit::{DONE, Outcome};
use crate::output::{Output, print};
use crate::size::size;

/// Seconds for which one request of '--follow' waits.
const WAIT: u64 = 20;

/// Change how a pool behaves, or show it.
///
/// What is set is kept with the pool; while it is served, it holds at once. Without options the
/// settings are shown. A write that finds no space waits until the pool has grown, something was
/// deleted or discarded, or the time limit is over: only of a pool that is served, or grows by
/// itself, since nobody else could help.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn pool set lab --autogrow 80:20 --autogrow-max 500G
  firn pool set lab --no-space error")]
pub(crate) struct Set {
    /// The pool's directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// What a write does that finds no space.
    #[arg(long, value_enum, value_name = "WHAT")]
    no_space: Option<NoSpaceArg>,

    /// Seconds for which it waits before it fails; 0 for as long as it takes.
    #[arg(long, value_name = "SECONDS")]
    no_space_timeout: Option<u64>,

    /// What becomes of discards. Not while the pool is served to or from 'ignore'.
    #[arg(long, value_enum, value_name = "WHAT")]
    discards: Option<DiscardArg>,

    /// Whether new blocks read as zeros where they were not written; else as whatever was there.
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    zero_new_blocks: Option<Switch>,

    /// Take no changes: writes and messages are refused. Growing goes on.
    #[arg(long, value_enum, value_name = "on|off", hide_possible_values = true)]
    read_only: Option<Switch>,

    /// Raise an event when no more data blocks than this are free.
    #[arg(long, value_name = "BLOCKS")]
    low_water: Option<u64>,

    /// Grow by STEP percent whenever PERCENT of the data are in use; 'off' for never.
    #[arg(long, value_name = "PERCENT:STEP", value_parser = autogrow)]
    autogrow: Option<Policy>,

    /// Grow by itself to this size at most.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    autogrow_max: Option<ByteCount>,
}

/// What a write does that finds no space.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum NoSpaceArg {
    /// Wait.
    Queue,
    /// Fail.
    Error,
}

/// What becomes of discards.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum DiscardArg {
    /// Space goes back to the pool, and to the file system below.
    Passdown,
    /// Space goes back to the pool.
    Keep,
    /// Nothing.
    Ignore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// What '--autogrow' says: threshold and step, or never.
#[derive(Clone, Copy, Debug)]
struct Policy(Option<(u64, u64)>);

fn autogrow(text: &str) -> Result<Policy> {
    if text == "off" {
        return Ok(Policy(None));
    }
    let parts = text.split_once(':').map(|(threshold, step)| (threshold.parse(), step.parse()));
    match parts {
        Some((Ok(threshold), Ok(step))) => Ok(Policy(Some((threshold, step)))),
        _ => Err(Error::new(ErrorKind::Invalid, format!("'{text}'"), "is no policy")
            .advise("say PERCENT:STEP, as in 80:20, or off")),
    }
}

/// Show what has happened to a pool that is served.
///
/// Events are numbered from 1 since the pool was opened: a low water mark that was reached, little
/// metadata, every change of the mode, waiting that took too long, growth. The latest 1024 are
/// kept.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn pool events lab --follow")]
pub(crate) struct Events {
    /// The pool's directory.
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Go on with what happens from now on, until the pool is closed. With --json a line is an
    /// event.
    #[arg(short, long)]
    follow: bool,

    /// Leave out the events up to this number.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: u64,
}

impl Set {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        let settings = if self.changes_nothing() {
            ask(&self.dir, |pool| pool.settings())?
        } else {
            change(&self.dir, |pool| {
                let mut settings = pool.settings()?;
                self.apply(&mut settings)?;
                pool.configure(&settings)
            })?
        };
        output.result(&settings, || describe(&settings))?;
        Ok(DONE)
    }

    fn changes_nothing(&self) -> bool {
        self.no_space.is_none()
            && self.no_space_timeout.is_none()
            && self.discards.is_none()
            && self.zero_new_blocks.is_none()
            && self.read_only.is_none()
            && self.low_water.is_none()
            && self.autogrow.is_none()
            && self.autogrow_max.is_none()
    }

    fn apply(&self, settings: &mut Settings) -> Result<()> {
        let Settings { no_space, no_space_timeout, discards, low_water, .. } = settings;
        *no_space = self.no_space.map_or(*no_space, |what| match what {
            NoSpaceArg::Queue => NoSpace::Queue,
            NoSpaceArg::Error => NoSpace::Error,
        });
        *discards = self.discards.map_or(*discards, |what| match what {
            DiscardArg::Passdown => DiscardSetting::Passdown,
            DiscardArg::Keep => DiscardSetting::Keep,
            DiscardArg::Ignore => DiscardSetting::Ignore,
        });
        *no_space_timeout = self.no_space_timeout.unwrap_or(*no_space_timeout);
        *low_water = self.low_water.unwrap_or(*low_water);
        if let Some(switch) = self.zero_new_blocks {
            settings.zero_new_blocks = switch == Switch::On;
        }
        if let Some(switch) = self.read_only {
            settings.read_only = switch == Switch::On;
        }
        if let Some(Policy(policy)) = self.autogrow {
            let max = settings.autogrow.and_then(|policy| policy.max);
            settings.autogrow = policy.map(|(threshold, step)| AutoGrow { threshold, step, max });
        }
        if let Some(max) = self.autogrow_max {
            let policy = settings.autogrow.as_mut().ok_or_else(|| {
                Error::new(ErrorKind::Invalid, "--autogrow-max", "the pool does not grow by itself")
                    .advise("say --autogrow 80:20 as well")
            })?;
            policy.max = Some(max.get());
        }
        Ok(())
    }
}

impl Events {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        if !self.follow {
            let list = ask(&self.dir, |pool| pool.events(self.after, 0))?;
            output.result(&list, || list.events.iter().map(line).collect())?;
            return Ok(DONE);
        }
        let pool = daemon::access(&self.dir, true)?;
        let mut after = self.after;
        loop {
            let list = pool.events(after, WAIT)?;
            if list.lost > 0 {
                output.note(&format!("{} events were forgotten", list.lost));
            }
            for event in &list.events {
                let json = || serde_json::to_string(event).expect("events are plain data") + "\n";
                print(&if output.is_json() { json() } else { line(event) })?;
                after = event.sequence;
            }
            if list.ended {
                return Ok(DONE);
            }
        }
    }
}

fn line(event: &EventInfo) -> String {
    let EventInfo { sequence, at, event, text } = event;
    format!("{sequence:>5}  {at}  {event:<17} {text}\n")
}

/// A pool's settings, one a line.
fn describe(settings: &Settings) -> String {
    let no_space = match (settings.no_space, settings.no_space_timeout) {
        (NoSpace::Error, _) => "error".to_owned(),
        (NoSpace::Queue, 0) => "queue, for as long as it takes".to_owned(),
        (NoSpace::Queue, limit) => format!("queue, for {limit} s"),
    };
    let discards = match settings.discards {
        DiscardSetting::Passdown => "passdown",
        DiscardSetting::Keep => "keep",
        DiscardSetting::Ignore => "ignore",
    };
    let switch = |on| if on { "on" } else { "off" }.to_owned();
    let autogrow = settings.autogrow.map_or("off".to_owned(), |policy| {
        let AutoGrow { threshold, step, max } = policy;
        let most = max.map(|max| block_types::format_size(ByteCount::new(max)));
        let most = most.map(|most| format!(", up to {most}")).unwrap_or_default();
        format!("at {threshold}% by {step}%{most}")
    });
    let lines = [
        ("no space", no_space),
        ("discards", discards.to_owned()),
        ("zero new blocks", switch(settings.zero_new_blocks)),
        ("read-only", switch(settings.read_only)),
        ("low water", format!("{} blocks", settings.low_water)),
        ("autogrow", autogrow),
    ];
    lines.iter().map(|(what, value)| format!("{:<17}{value}\n", format!("{what}:"))).collect()
}
