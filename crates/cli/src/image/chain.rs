//! The verbs that change the chain of an image: overlay, commit, stream, rebase.

use std::path::{Path, PathBuf};

use block_types::{ByteCount, Error, ErrorKind, Result, format_size};
use clap::Args;
use daemon::{ImageAccess, JobInfo};
use serde::Serialize;
use volume::{
    CreateImage, ImageFormat, ImageInfo, ImageOptions, ImageSettings, create_image, rename_backing,
};

use super::Access;
use crate::exit::{DONE, Outcome};
use crate::output::Output;
use crate::progress;
use crate::size::size;

/// Make a new qcow2 image that stands on another: an external snapshot of that one.
///
/// The new image begins as the other one is, and takes what is written from then on. The other one
/// is not to be written any more as long as something stands on it.
#[derive(Args, Debug)]
#[command(after_long_help = "EXAMPLE\n  firn image overlay disk.qcow2 monday.qcow2")]
pub(crate) struct Overlay {
    /// The image that is to stay as it is.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    /// The new image.
    #[arg(value_name = "NEW")]
    new: PathBuf,

    #[command(flatten)]
    access: Access,
}

/// How fast a job may go.
#[derive(Args, Debug)]
struct Pace {
    /// Move so many bytes in a second at most.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    rate: Option<ByteCount>,

    /// Where a daemon serves the image: begin, and do not wait for the end.
    #[arg(long)]
    background: bool,
}

/// Write what an image has into the one below it.
///
/// Without --top that is IMAGE itself, which must not be served; it stays, and reads the same. With
/// --top it is an image further down: the images from there to the base are not needed any more
/// afterwards, and what stood on them stands on the base. That may be done while IMAGE is served.
///
/// Every other image that stands on the base reads something else afterwards. If it is broken off,
/// IMAGE reads the same, and it can be begun again.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn image commit top.qcow2
  firn image commit top.qcow2 --top mid.qcow2 --base base.qcow2")]
pub(crate) struct Commit {
    /// The image.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    /// The upmost image that is written into the base.
    #[arg(long, value_name = "FILE")]
    top: Option<PathBuf>,

    /// The image that takes it all; the next one below, if none is said.
    #[arg(short, long, value_name = "FILE")]
    base: Option<PathBuf>,

    #[command(flatten)]
    pace: Pace,

    #[command(flatten)]
    access: Access,
}

/// Pull up into an image what the images below it have.
///
/// Afterwards it stands on the base, or alone where none is said; the images in between stay as
/// they are. It may be served and written meanwhile. If it is broken off, it reads the same, and
/// what was pulled up need not be again.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn image stream top.qcow2
  firn image stream top.qcow2 --base base.qcow2")]
pub(crate) struct Stream {
    /// The image.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    /// The image of its chain that it is to stand on.
    #[arg(short, long, value_name = "FILE")]
    base: Option<PathBuf>,

    #[command(flatten)]
    pace: Pace,

    #[command(flatten)]
    access: Access,
}

/// Put an image on another backing file.
///
/// It reads the same afterwards: where the new backing file holds something else than the old one,
/// the image takes that over. It may be served and written meanwhile. With --unsafe only the name
/// is changed, and the image reads what the new backing file holds.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn image rebase top.qcow2 -b other.qcow2 -F qcow2
  firn image rebase -u top.qcow2 -b moved/base.qcow2 -F qcow2")]
pub(crate) struct Rebase {
    /// The image.
    #[arg(value_name = "IMAGE")]
    path: PathBuf,

    /// The new backing file; with --unsafe as the image is to name it, and '' for none.
    #[arg(short, long, value_name = "FILE")]
    backing: String,

    /// The format of the new backing file.
    #[arg(short = 'F', long, value_name = "FORMAT")]
    backing_format: Option<ImageFormat>,

    /// Change the name and nothing else; neither backing file is looked at.
    #[arg(short = 'u', long = "unsafe")]
    renames_only: bool,

    #[command(flatten)]
    pace: Pace,

    #[command(flatten)]
    access: Access,
}

/// A new overlay, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Overlaid {
    filename: String,
    backing_filename: String,
    virtual_size: u64,
}

/// A new name, as JSON has it.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Renamed {
    filename: String,
    backing_filename: Option<String>,
}

impl Overlay {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let format = ImageInfo::read(&self.path, self.access.format)?.format.parse()?;
        let name = relative(&self.path, &self.new)?;
        let wanted = CreateImage {
            format: ImageFormat::Qcow2,
            size: None,
            backing: Some((name.clone(), format)),
            settings: ImageSettings::default(),
            secret: None,
        };
        let size = create_image(&self.new, &wanted)?;
        let report = Overlaid {
            filename: self.new.display().to_string(),
            backing_filename: name,
            virtual_size: size.get(),
        };
        output.done(&report, || {
            let (new, old) = (self.new.display(), self.path.display());
            format!("{new}: stands on {old}, {}", format_size(size))
        })?;
        Ok(DONE)
    }
}

impl Commit {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let (top, base) = (self.top.as_deref(), self.base.as_deref());
        let begin = |image: &dyn ImageAccess| image.commit(top, base);
        run(&self.path, &self.access, &self.pace, "committing", output, begin)
    }
}

impl Stream {
    pub(super) fn run(&self, output: Output) -> Outcome {
        let begin = |image: &dyn ImageAccess| image.stream(self.base.as_deref());
        run(&self.path, &self.access, &self.pace, "streaming", output, begin)
    }
}

impl Rebase {
    pub(super) fn run(&self, output: Output) -> Outcome {
        if self.renames_only {
            return self.rename(output);
        }
        let options = ImageOptions { format: self.backing_format, ..self.access.reading() };
        let begin = |image: &dyn ImageAccess| image.rebase(Path::new(&self.backing), &options);
        run(&self.path, &self.access, &self.pace, "rebasing", output, begin)
    }

    fn rename(&self, output: Output) -> Outcome {
        let backing = match (self.backing.as_str(), self.backing_format) {
            ("", _) => None,
            (name, Some(format)) => Some((name, format)),
            (_, None) => {
                let object = self.path.display().to_string();
                let problem = "is to name a backing file whose format is not said";
                return Err(Error::new(ErrorKind::Invalid, object, problem)
                    .advise("say it with -F: nobody looks at the file")
                    .into());
            }
        };
        rename_backing(&self.path, backing)?;
        let filename = self.path.display().to_string();
        let report = Renamed { filename, backing_filename: backing.map(|(name, _)| name.into()) };
        output.done(&report, || match &report.backing_filename {
            Some(name) => format!("{}: names {name} as its backing file", report.filename),
            None => format!("{}: names no backing file", report.filename),
        })?;
        Ok(DONE)
    }
}

/// Begins a job on the image at `path`, and waits for its end.
fn run(
    path: &Path,
    access: &Access,
    pace: &Pace,
    what: &str,
    output: Output,
    begin: impl FnOnce(&dyn ImageAccess) -> Result<JobInfo>,
) -> Outcome {
    let image = daemon::access_image(path, &access.changing())?;
    let job = begin(&*image)?;
    if let Some(rate) = pace.rate {
        image.jobs().set_rate(job.id, rate.get())?;
    }
    if pace.background && image.is_served() {
        output.done(&job, || format!("{}: job {} has begun", path.display(), job.id))?;
        return Ok(DONE);
    }
    let ended = progress::attend(image.jobs(), job.id, what, output);
    // Also after a failure: what was done until then stays.
    let closed = image.close();
    let job = ended?;
    closed?;
    output.done(&job, || sentence(path, &job))?;
    Ok(DONE)
}

/// What a job came to.
fn sentence(path: &Path, job: &JobInfo) -> String {
    let result = job.result.clone().unwrap_or_default();
    let below = match result["backing"].as_str() {
        Some(backing) => format!("stands on {backing}"),
        None => "stands on nothing".to_owned(),
    };
    let dropped: Vec<_> =
        result["dropped"].as_array().into_iter().flatten().filter_map(|it| it.as_str()).collect();
    let unused = match dropped.as_slice() {
        [] => String::new(),
        dropped => format!("; not needed any more: {}", dropped.join(", ")),
    };
    format!("{}: {} done, {below}{unused}", path.display(), job.kind)
}

/// `path` as an image at `image` is to name it.
fn relative(path: &Path, image: &Path) -> Result<String> {
    let real = |path: &Path| {
        path.canonicalize()
            .map_err(|error| Error::io(path.display().to_string(), "cannot be reached", error))
    };
    let folder = match image.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => real(folder)?,
        _ => real(Path::new("."))?,
    };
    let path = real(path)?;
    Ok(path.strip_prefix(&folder).unwrap_or(&path).display().to_string())
}
