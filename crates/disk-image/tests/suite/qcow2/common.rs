//! Files, QEMU's programs, and images that Firn opens.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, FileOptions, HostFile};
use block_types::{ByteCount, ByteOffset, Result};
use disk_image::qcow2::{CreateOptions, Image, OpenOptions, create};
use testkit::peer::peer;

/// A folder for one test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// A folder with the backing file that the images of the model name.
    pub(crate) fn with_backing() -> Self {
        let folder = Self::new();
        std::fs::write(folder.file("backing"), []).expect("written");
        folder
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs qemu-img here.
    #[track_caller]
    pub(crate) fn img(&self, line: &str) -> String {
        peer("qemu-img").args(line.split_whitespace()).in_folder(self.path()).ok()
    }

    /// Runs commands of qemu-io on an image here.
    #[track_caller]
    pub(crate) fn io(&self, image: &str, commands: &[String]) -> String {
        let mut qemu = peer("qemu-io").args(["-f", "qcow2"]);
        for command in commands {
            qemu = qemu.args(["-c", command]);
        }
        let said = qemu.arg(image).in_folder(self.path()).ok();
        assert!(!said.contains("failed"), "{commands:?}: {said}");
        said
    }

    /// What qemu-img's check says, which must be nothing.
    #[track_caller]
    pub(crate) fn check(&self, image: &str) {
        let outcome = peer("qemu-img")
            .args(["check", "-q", "-f", "qcow2", image])
            .in_folder(self.path())
            .run();
        assert!(outcome.code() == Some(0), "{outcome}");
    }

    /// The image's content as qemu-img reads it.
    #[track_caller]
    pub(crate) fn content(&self, image: &str, more: &str) -> Vec<u8> {
        self.img(&format!("convert -q {more} -O raw {image} content.raw"));
        std::fs::read(self.file("content.raw")).expect("converted")
    }

    pub(crate) fn host(&self, name: &str, read_only: bool) -> Arc<dyn BlockDevice> {
        let options = FileOptions { cache: CacheMode::Cached, read_only };
        Arc::new(HostFile::open(&self.file(name), options).expect("opened"))
    }

    /// A new file of no bytes.
    pub(crate) fn new_file(&self, name: &str) -> Arc<dyn BlockDevice> {
        let file = HostFile::create(&self.file(name), ByteCount::ZERO, CacheMode::Cached);
        Arc::new(file.expect("created"))
    }

    pub(crate) fn open(&self, name: &str) -> Arc<Image> {
        self.try_open(name, OpenOptions::default()).expect("opened")
    }

    pub(crate) fn try_open(&self, name: &str, options: OpenOptions) -> Result<Arc<Image>> {
        Image::open(self.host(name, options.read_only), options)
    }

    pub(crate) fn create(&self, name: &str, options: &CreateOptions) -> Arc<Image> {
        create(&self.new_file(name), None, options).expect("created");
        self.open(name)
    }
}

/// The whole content of a device.
#[track_caller]
pub(crate) fn contents(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.size().as_usize()];
    device.read_at(&mut bytes, ByteOffset::ZERO).expect("read");
    bytes
}

/// Compares contents without printing them.
#[track_caller]
pub(crate) fn same(found: &[u8], expected: &[u8]) {
    assert_eq!(found.len(), expected.len(), "sizes");
    if let Some(at) = found.iter().zip(expected).position(|(one, other)| one != other) {
        panic!("byte {at:#x} is {:#x}, not {:#x}", found[at], expected[at]);
    }
}

/// A readable text of `len` bytes that compresses, different for each `salt`.
pub(crate) fn text(len: usize, salt: u64) -> Vec<u8> {
    let mut rng = testkit::rng::Rng::new(salt);
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        bytes.extend_from_slice(format!("line {} of {salt}\n", rng.within(0..1000)).as_bytes());
    }
    bytes.truncate(len);
    bytes
}
