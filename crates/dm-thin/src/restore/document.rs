//! The document as a whole: which element stands where, and what it tells the builder.
//!
//! ```text
//!   superblock
//!     def name          single_mapping | range_mapping ...
//!     device dev_id     single_mapping | range_mapping | ref ...
//! ```

use std::collections::HashMap;
use std::fmt;
use std::io::BufRead;
use std::sync::Arc;

use block_io::BlockDevice;
use block_types::{ByteCount, Error, ErrorKind, Result};

use super::times::Times;
use super::{Builder, Overrides, PoolFields, Restored, Run, Shared};
use crate::xml::{Element, Lexer, Tag, decimal};
use crate::{BlockSize, DataBlock, DeviceId, DeviceState, GuestBlock, Time};

/// A document that is being restored.
pub(super) struct Document<R> {
    lexer: Lexer<R>,
    state: Option<State>,
    metadata: Option<Arc<dyn BlockDevice>>,
    overrides: Overrides,
    restored: Restored,
}

/// What follows from the superblock's element.
struct State {
    builder: Builder,
    fields: PoolFields,
    inside: Inside,
    times: Times,
    /// Definitions by name.
    defined: HashMap<Name, Shared>,
}

/// The name of a definition. The thin tools use numbers, which take no memory of their own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Name {
    Number(u64),
    Text(Vec<u8>),
}

/// The element that is open.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Inside {
    Superblock,
    Definition(Name),
    /// The device, and what the input says of it.
    Device(DeviceId, DeviceState),
}

impl<R: BufRead> Document<R> {
    pub(super) fn new(xml: R, metadata: Arc<dyn BlockDevice>, overrides: Overrides) -> Self {
        let (lexer, restored) = (Lexer::new(xml), Restored::default());
        Self { lexer, state: None, metadata: Some(metadata), overrides, restored }
    }

    pub(super) fn restore(mut self) -> Result<Restored> {
        loop {
            let Some(element) = self.lexer.next()? else {
                return Err(self.lexer.wrong("ends before the superblock does"));
            };
            if let Some(state) = &mut self.state {
                let done = state.element(&element, &mut self.restored);
                if done.map_err(|error| place(error, &element))? {
                    break;
                }
            } else {
                let Some(metadata) = self.metadata.take() else { break };
                self.state = Some(State::begin(&element, metadata, &self.overrides)?);
            }
        }
        if let Some(element) = self.lexer.next()? {
            return Err(
                element.wrong(format!("<{}> stands behind the superblock", element.shown()))
            );
        }
        let Some(state) = self.state else { return Err(self.lexer.wrong("has no superblock")) };
        state.builder.finish(&state.fields)?;
        Ok(self.restored)
    }
}

impl State {
    fn begin(
        element: &Element<'_>,
        metadata: Arc<dyn BlockDevice>,
        overrides: &Overrides,
    ) -> Result<Self> {
        if (element.tag, element.name) != (Tag::Open, b"superblock") {
            let problem = format!("<{}> stands before the superblock", element.shown());
            return Err(element.wrong(problem));
        }
        let names = [
            "time",
            "transaction",
            "data_block_size",
            "nr_data_blocks",
            "uuid",
            "flags",
            "version",
            "metadata_snap",
        ];
        // Of the last four nothing is kept: the new metadata is sound, of this version, and has no
        // metadata snapshot.
        let values = element.values(names)?;
        let [time, transaction, sectors, data_blocks, ..] = values;
        for index in 5..names.len() {
            element.number(names[index], values[index])?;
        }
        let time = time32(element, names[0], time)?;
        let transaction = element.required(names[1], transaction)?;
        let sectors = element.required(names[2], sectors)?;
        let data_blocks = element.required(names[3], data_blocks)?;
        let block_size = match overrides.block_size {
            Some(size) => size,
            None => sectors
                .checked_mul(block_types::SECTOR)
                .ok_or_else(|| element.wrong("has an impossible data block size"))
                .and_then(|bytes| BlockSize::new(ByteCount::new(bytes)))
                .map_err(|error| place(error, element))?,
        };
        let transaction = overrides.transaction.unwrap_or(transaction);
        let builder = Builder::new(metadata, overrides.data_blocks.unwrap_or(data_blocks))?;
        let times = Times::new(overrides.renumber, time);
        let fields = PoolFields { block_size, time: times.of_pool(time), transaction };
        let (inside, defined) = (Inside::Superblock, HashMap::new());
        Ok(Self { builder, fields, inside, times, defined })
    }

    /// Takes in an element; `true` at the end of the superblock.
    fn element(&mut self, element: &Element<'_>, restored: &mut Restored) -> Result<bool> {
        match (element.tag, element.name) {
            (Tag::Empty, b"range_mapping") => self.range(element)?,
            (Tag::Empty, b"single_mapping") => self.single(element)?,
            (Tag::Empty, b"ref") => self.reference(element)?,
            (Tag::Open, b"device") => self.begin_device(element)?,
            (Tag::Open, b"def") => self.begin_definition(element)?,
            (Tag::Empty, b"device") => {
                self.begin_device(element)?;
                self.end_device(restored)?;
            }
            (Tag::Empty, b"def") => {
                self.begin_definition(element)?;
                self.end_definition()?;
            }
            (Tag::Close, b"device") if matches!(self.inside, Inside::Device(..)) => {
                self.end_device(restored)?;
            }
            (Tag::Close, b"def") if matches!(self.inside, Inside::Definition(_)) => {
                self.end_definition()?;
            }
            (Tag::Close, b"superblock") if self.inside == Inside::Superblock => return Ok(true),
            (tag, _) => {
                let slash = if tag == Tag::Close { "/" } else { "" };
                let problem = format!("<{slash}{}> cannot stand here", element.shown());
                return Err(element.wrong(problem));
            }
        }
        Ok(false)
    }

    fn range(&mut self, element: &Element<'_>) -> Result<()> {
        let names = ["origin_begin", "data_begin", "length", "time"];
        let [from, to, len, time] = element.numbers(names)?;
        self.run(element, from, to, len, time)
    }

    fn single(&mut self, element: &Element<'_>) -> Result<()> {
        let [from, to, time] = element.numbers(["origin_block", "data_block", "time"])?;
        self.run(element, from, to, 1, time)
    }

    fn run(
        &mut self,
        element: &Element<'_>,
        from: u64,
        to: u64,
        len: u64,
        time: u64,
    ) -> Result<()> {
        let snapshotted = match &self.inside {
            Inside::Superblock => {
                return Err(element.wrong("has a mapping outside of a device"));
            }
            Inside::Definition(_) => None,
            Inside::Device(_, state) => Some(state.snapshotted),
        };
        let time = u32::try_from(time)
            .map_err(|_| element.wrong(format!("has the time {time}, which needs over 24 bits")))?;
        let (from, to) = (GuestBlock::new(from), DataBlock::new(to));
        let time = self.times.of_mapping(Time::new(time), snapshotted);
        self.builder.run(Run { from, to, len, time })
    }

    fn reference(&mut self, element: &Element<'_>) -> Result<()> {
        if !matches!(self.inside, Inside::Device(..)) {
            return Err(element.wrong("has a <ref> outside of a device"));
        }
        let name = name_of(element)?;
        match self.defined.get(&name) {
            Some(&shared) => self.builder.share(shared),
            None => Err(element.wrong(format!("refers to {name}, which is not defined before"))),
        }
    }

    fn begin_device(&mut self, element: &Element<'_>) -> Result<()> {
        self.expect_superblock(element)?;
        let names = ["dev_id", "mapped_blocks", "transaction", "creation_time", "snap_time"];
        let values = element.values(names)?;
        let id = element.required(names[0], values[0])?;
        let id = u32::try_from(id).map_or_else(
            |_| Err(element.wrong(format!("has the device {id}, which needs over 24 bits"))),
            DeviceId::new,
        )?;
        let mapped = element.required(names[1], values[1])?;
        let details = DeviceState {
            mapped,
            transaction: element.required(names[2], values[2])?,
            created: time32(element, names[3], values[3])?,
            snapshotted: time32(element, names[4], values[4])?,
        };
        self.builder.begin_device(id, self.times.of_device(details))?;
        self.inside = Inside::Device(id, details);
        Ok(())
    }

    fn end_device(&mut self, restored: &mut Restored) -> Result<()> {
        let counted = self.builder.end_device()?;
        restored.devices += 1;
        restored.mapped += counted;
        if let Inside::Device(id, said) = self.inside
            && said.mapped != counted
        {
            restored.recounted.push(id);
        }
        self.inside = Inside::Superblock;
        Ok(())
    }

    fn begin_definition(&mut self, element: &Element<'_>) -> Result<()> {
        self.expect_superblock(element)?;
        let name = name_of(element)?;
        if self.defined.contains_key(&name) {
            return Err(element.wrong("defines the same name as another <def>"));
        }
        self.builder.begin_shared()?;
        self.inside = Inside::Definition(name);
        Ok(())
    }

    fn end_definition(&mut self) -> Result<()> {
        let shared = self.builder.end_shared()?;
        let inside = std::mem::replace(&mut self.inside, Inside::Superblock);
        if let Inside::Definition(name) = inside {
            self.defined.insert(name, shared);
        }
        Ok(())
    }

    fn expect_superblock(&self, element: &Element<'_>) -> Result<()> {
        if self.inside == Inside::Superblock {
            return Ok(());
        }
        Err(element.wrong(format!("<{}> stands inside another", element.shown())))
    }
}

impl Name {
    fn new(name: &[u8]) -> Self {
        match decimal(name) {
            // Numbers that are written in another way are other names.
            Some(number) if name[0] != b'0' || name.len() == 1 => Self::Number(number),
            _ => Self::Text(name.to_vec()),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "\"{number}\""),
            Self::Text(text) => {
                write!(f, "{:?}", String::from_utf8_lossy(&text[..text.len().min(40)]))
            }
        }
    }
}

fn name_of(element: &Element<'_>) -> Result<Name> {
    match element.values(["name"])? {
        [Some(name)] => Ok(Name::new(name)),
        [None] => {
            let problem = format!("<{}> lacks the attribute \"name\"", element.shown());
            Err(element.wrong(problem))
        }
    }
}

/// A time of a device or of the pool, which has 32 bits.
fn time32(element: &Element<'_>, name: &str, value: Option<&[u8]>) -> Result<Time> {
    let number = element.required(name, value)?;
    match u32::try_from(number) {
        Ok(time) => Ok(Time::new(time)),
        Err(_) => Err(element.wrong(format!("has {name}={number}, which needs over 32 bits"))),
    }
}

/// Says where in the document an error is that does not know it yet. What the device failed at has
/// nothing to do with a line.
fn place(error: Error, element: &Element<'_>) -> Error {
    let of_input = matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Exists);
    if of_input && !error.object().starts_with("line ") {
        return error.within(&element.place());
    }
    error
}
