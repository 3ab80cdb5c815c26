//! The tools for metadata against thin-provisioning-tools, and the opening of a large pool.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use block_io::{CacheMode, FileOptions, HostFile};
use block_types::ByteCount;
use dm_thin::{OpenOptions, Pool};
use testkit::peer::{Peer, find};

use super::gates::Bound;
use super::hollow::Swallowing;
use super::lab::{Lab, firn, run_firn};
use super::metadata::{BLOCK, DATA_BLOCKS, SHAPE, make};
use super::pairs::spread;
use super::report::{Line, failed};
use super::table::{cell, figure};
use super::usage::{self, Usage};
use super::{Options, cache};

/// A tool and its peer: what they are told, with `{metadata}`, `{xml}`, `{pack}`, and `{new}` for a
/// file that they write.
struct Tool {
    ours: &'static [&'static str],
    theirs: &'static [&'static str],
    /// How many times as fast as the peer it has to be.
    least: f64,
    /// Whether it may take no more memory than the peer.
    lean: bool,
    proof: Proof,
}

/// How it is shown that both did the same.
enum Proof {
    /// Their status.
    Status,
    /// Their output, but for blanks at the end.
    Output,
    /// `thin_check` of what they wrote.
    Check,
}

const TOOLS: &[Tool] = &[
    Tool {
        ours: &["pool", "check", "{metadata}"],
        theirs: &["thin_check", "{metadata}"],
        least: 1.5,
        lean: true,
        proof: Proof::Status,
    },
    Tool {
        ours: &["pool", "dump", "{metadata}"],
        theirs: &["thin_dump", "{metadata}"],
        least: 1.0,
        lean: true,
        proof: Proof::Output,
    },
    Tool {
        ours: &["pool", "restore", "-i", "{xml}", "{new}", "--force"],
        theirs: &["thin_restore", "-i", "{xml}", "-o", "{new}"],
        least: 1.0,
        lean: true,
        proof: Proof::Check,
    },
    Tool {
        ours: &["pool", "delta", "{metadata}", "--thin1", "0", "--thin2", "50"],
        theirs: &["thin_delta", "{metadata}", "--thin1", "0", "--thin2", "50"],
        least: 1.5,
        lean: true,
        proof: Proof::Output,
    },
    Tool {
        ours: &["pool", "ls", "{metadata}", "-o", "DEV,MAPPED,EXCLUSIVE"],
        theirs: &["thin_ls", "{metadata}", "-o", "DEV,MAPPED,EXCLUSIVE"],
        least: 1.0,
        lean: false,
        proof: Proof::Status,
    },
    Tool {
        // It names every device that maps a block, the peer one of them.
        ours: &["pool", "rmap", "{metadata}", "--region", "1000000..1100000"],
        theirs: &["thin_rmap", "{metadata}", "--region", "1000000..1100000"],
        least: 1.0,
        lean: false,
        proof: Proof::Status,
    },
    Tool {
        ours: &["pool", "pack", "{metadata}", "-o", "{new}", "--force"],
        theirs: &["thin_metadata_pack", "-i", "{metadata}", "-o", "{new}"],
        least: 1.0,
        lean: false,
        proof: Proof::Status,
    },
    Tool {
        ours: &["pool", "unpack", "{pack}", "-o", "{new}", "--force"],
        theirs: &["thin_metadata_unpack", "-i", "{pack}", "-o", "{new}"],
        least: 1.0,
        lean: false,
        proof: Proof::Check,
    },
];

/// How long a large pool may take to open, in milliseconds.
const OPEN_MS: f64 = 100.0;
const OPEN: &str = "pool open";

/// Measures what `options` ask for.
pub(super) fn run(lab: &Lab, options: &Options) -> Vec<Line> {
    let mut lines = Vec::new();
    for tool in TOOLS.iter().filter(|tool| tool.name().contains(&options.rows)) {
        let line = tool.measure(lab, options);
        lines.push(line.unwrap_or_else(|error| failed(&tool.name(), tool.theirs[0], &error)));
    }
    if OPEN.contains(&options.rows) {
        for (state, cold) in [("metadata cached", false), ("metadata on the disk", true)] {
            let line = open(lab, options, state, cold);
            lines.push(line.unwrap_or_else(|error| failed(OPEN, state, &error)));
        }
    }
    lines.iter().for_each(|line| eprintln!("{}", line.text()));
    lines
}

/// The names of the rows.
pub(super) fn names() -> impl Iterator<Item = String> {
    TOOLS.iter().map(Tool::name).chain([OPEN.to_owned()])
}

/// The files that the tools read and write.
struct Files {
    metadata: PathBuf,
    xml: PathBuf,
    pack: PathBuf,
    new: PathBuf,
    output: PathBuf,
}

impl Files {
    fn new(lab: &Lab, scratch: &Path) -> Result<Self> {
        let metadata = lab.made("used-metadata", make)?;
        let text = |path: &Path| path.display().to_string();
        let from = text(&metadata);
        let xml = lab.made("used-metadata.xml", |path| {
            run_firn(&["pool", "dump", &from, "-o", &text(path), "--force"])
        })?;
        let pack = lab.made("used-metadata.pack", |path| {
            run_firn(&["pool", "pack", &from, "-o", &text(path), "--force"])
        })?;
        let [new, output] = ["new", "output"].map(|name| scratch.join(name));
        Ok(Self { metadata, xml, pack, new, output })
    }

    fn words(&self, words: &[&str]) -> Vec<String> {
        let path = |word: &str| match word {
            "{metadata}" => Some(&self.metadata),
            "{xml}" => Some(&self.xml),
            "{pack}" => Some(&self.pack),
            "{new}" => Some(&self.new),
            _ => None,
        };
        let text = |word: &str| path(word).map(|path| path.display().to_string());
        words.iter().map(|word| text(word).unwrap_or_else(|| (*word).to_owned())).collect()
    }

    /// Runs a tool once, until what it wrote is on the disk.
    fn run(&self, program: &PathBuf, words: &[&str]) -> Result<Usage> {
        // The peers write to what is there already.
        File::create(&self.new)?.set_len(fs::metadata(&self.metadata)?.len())?;
        let output = File::create(&self.output)?;
        let usage = usage::of(program, &self.words(words), output)?;
        let begun = Instant::now();
        [&self.new, &self.output].into_iter().try_for_each(|path| File::open(path)?.sync_all())?;
        Ok(Usage { seconds: usage.seconds + begun.elapsed().as_secs_f64(), ..usage })
    }
}

impl Tool {
    fn name(&self) -> String {
        self.ours[..2].join(" ")
    }

    fn measure(&self, lab: &Lab, options: &Options) -> Result<Line> {
        let version = version(self.theirs[0])?;
        let scratch = lab.scratch()?;
        let files = Files::new(lab, scratch.path())?;
        let (a, b) = (PathBuf::from(firn()?), find(self.theirs[0])?);
        let run_a = || files.run(&a, self.ours);
        let run_b = || files.run(&b, &self.theirs[1..]);
        // Once each: this brings everything into the page cache, and shows that both do the same.
        let proofs =
            [run_a().and_then(|_| self.proof(&files))?, run_b().and_then(|_| self.proof(&files))?];
        ensure!(proofs[0] == proofs[1], "the outputs of the two are not the same");
        let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
        for round in 0..options.rounds {
            if round % 2 == 0 {
                of_a.push(run_a()?);
                of_b.push(run_b()?);
            } else {
                of_b.push(run_b()?);
                of_a.push(run_a()?);
            }
        }
        Ok(self.line(&format!("{} {version}", self.theirs[0]), &of_a, &of_b))
    }

    /// What both have to agree in.
    fn proof(&self, files: &Files) -> Result<Vec<u8>> {
        match self.proof {
            Proof::Status => Ok(Vec::new()),
            Proof::Output => Ok(fs::read(&files.output)?.trim_ascii_end().to_vec()),
            Proof::Check => {
                let outcome = Peer::find("thin_check")?.arg("-q").arg(&files.new).run();
                ensure!(outcome.code() == Some(0), "{outcome}");
                Ok(Vec::new())
            }
        }
    }

    fn line(&self, against: &str, a: &[Usage], b: &[Usage]) -> Line {
        let seconds = |all: &[Usage]| spread(all.iter().map(|usage| usage.seconds));
        let peak = |all: &[Usage]| spread(all.iter().map(|usage| usage.peak)).median;
        let faster = spread(a.iter().zip(b).map(|(a, b)| b.seconds / a.seconds));
        let memory = ("memory ", Bound::Most(1.0), peak(a) / peak(b));
        let speed = ("", Bound::Least(self.least), faster.median);
        let bounds = [Some(speed), self.lean.then_some(memory)];
        let join = |text: fn(&Bound, f64) -> String| {
            let parts = bounds.iter().flatten();
            let parts = parts.map(|(word, bound, value)| format!("{word}{}", text(bound, *value)));
            parts.collect::<Vec<_>>().join(", ")
        };
        Line {
            what: self.name(),
            against: against.to_owned(),
            target: join(|bound, _| bound.target()),
            reached: join(|bound, value| bound.show(value)),
            figures: format!(
                "{} times as fast; {} against {} s; at most {} against {} MiB",
                cell(&faster),
                cell(&seconds(a)),
                cell(&seconds(b)),
                figure(peak(a) / 1024.0),
                figure(peak(b) / 1024.0),
            ),
            met: bounds.iter().flatten().all(|(_, bound, value)| bound.holds(*value)),
        }
    }
}

/// The version of one of the thin tools, which has to be 1.x.
fn version(tool: &str) -> Result<String> {
    let said = Peer::find(tool)?.arg("--version").ok();
    // "1.3.3", or "thin_check 1.3.3".
    let version = said.split_whitespace().last().context("no version")?.to_owned();
    ensure!(
        !version.starts_with("0."),
        "{tool} is of thin-provisioning-tools {version}, which knows no sharing between devices: \
         put those of 1.x first on the PATH"
    );
    Ok(version)
}

/// Opens the pool as somebody would who is about to use it.
fn open(lab: &Lab, options: &Options, state: &str, cold: bool) -> Result<Line> {
    let file = lab.made("used-metadata", make)?;
    let milliseconds = || -> Result<f64> {
        if cold {
            cache::set_cold(&file)?;
        }
        let begun = Instant::now();
        let cached = FileOptions { cache: CacheMode::Cached, read_only: false };
        let metadata = Arc::new(HostFile::open(&file, cached)?);
        let data = Arc::new(Swallowing { size: ByteCount::new(DATA_BLOCKS * BLOCK) });
        let pool = Pool::open("pool", metadata, data, OpenOptions::default())?;
        let took = begun.elapsed();
        pool.close()?;
        Ok(took.as_secs_f64() * 1e3)
    };
    // The first brings into the page cache what an opening reads.
    milliseconds()?;
    let times: Vec<f64> = (0..options.rounds).map(|_| milliseconds()).collect::<Result<_>>()?;
    let times = spread(times.into_iter());
    Ok(Line {
        what: OPEN.to_owned(),
        against: state.to_owned(),
        target: format!("< {OPEN_MS} ms"),
        reached: format!("{} ms", figure(times.median)),
        figures: format!("{} ms; {SHAPE}", cell(&times)),
        met: times.median < OPEN_MS,
    })
}

#[cfg(test)]
mod tests {
    use super::{TOOLS, Usage};

    #[test]
    fn a_tool_is_missed_by_time_or_memory() {
        let usage = |seconds, peak| Usage { seconds, peak };
        let met = |ours| TOOLS[0].line("thin_check 1.3.3", &[ours], &[usage(3.0, 1000.0)]).met;
        assert!(met(usage(1.9, 1000.0)));
        assert!(!met(usage(2.1, 100.0)), "too slow");
        assert!(!met(usage(0.1, 1001.0)), "too large");
    }
}
