//! `firn volume activate`: a name and a size for a device, from a table line of the kernel.

use std::cmp::Ordering;

use block_types::{ByteCount, Error, ErrorKind, Result};
use clap::Args;
use daemon::PoolAccess;
use dm_thin::ThinTable;
use volume::VolumeInfo;

use crate::access::change;
use crate::address::{VolumeAddress, volume};
use crate::exit::{DONE, Outcome};
use crate::output::Output;

/// Give a device a name by a table line, as 'dmsetup create NAME --table LINE' does.
///
/// The device is one that a message has made, or another program. The pool on the line is the
/// directory, or the last part of its path. A name that is there is given the line's size if that
/// is larger; a smaller one is for 'firn volume resize', since what lies behind it is lost there.
#[derive(Args, Debug)]
#[command(after_long_help = "\
EXAMPLE
  firn volume activate lab/db --table '0 2097152 thin /dev/mapper/lab 7'")]
pub(crate) struct Activate {
    /// The pool's directory and the volume's name.
    #[arg(value_name = "DIR/NAME", value_parser = volume)]
    volume: VolumeAddress,

    /// The table line: 0 SECTORS thin POOL ID.
    #[arg(long, value_name = "LINE", value_parser = ThinTable::parse)]
    table: ThinTable,
}

impl Activate {
    pub(crate) fn run(&self, output: Output) -> Outcome {
        self.check()?;
        let info = change(&self.volume.pool, |pool| self.activate(pool))?;
        output.done(&info, || format!("{}: is device {} now", self.volume, info.id))?;
        Ok(DONE)
    }

    fn check(&self) -> Result<()> {
        let last = |path: &std::path::Path| path.file_name().map(ToOwned::to_owned);
        let pool = std::path::absolute(&self.volume.pool).unwrap_or_default();
        if last(self.table.pool.as_ref()) != last(&pool) {
            let problem = format!("is not on the pool that the table names, {}", self.table.pool);
            return Err(Error::new(ErrorKind::Invalid, self.volume.to_string(), problem));
        }
        if let Some(origin) = &self.table.origin {
            let problem = format!("cannot be given its origin {origin} by a table line");
            return Err(Error::new(ErrorKind::Unsupported, self.volume.to_string(), problem)
                .advise("make it with 'firn volume create --origin'"));
        }
        Ok(())
    }

    fn activate(&self, pool: &dyn PoolAccess) -> Result<VolumeInfo> {
        let (name, size) = (&self.volume.volume, self.table.length);
        let info = match pool.volume(name) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return pool.name_device(self.table.id, name, size);
            }
            info => info?,
        };
        let refuse =
            |problem: String| Err(Error::new(ErrorKind::Exists, self.volume.to_string(), problem));
        if info.id != self.table.id.get() {
            return refuse(format!("is device {}, not {}", info.id, self.table.id));
        }
        match size.cmp(&ByteCount::new(info.size)) {
            Ordering::Less => refuse(format!("has {} bytes, the table less", info.size)),
            Ordering::Equal => Ok(info),
            Ordering::Greater => pool.resize_volume(name, size),
        }
    }
}
