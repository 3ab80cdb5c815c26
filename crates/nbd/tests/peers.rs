//! The peers: libnbd's tools, QEMU's and fio as clients of ours; `qemu-nbd` and nbdkit as servers
//! for ours. A program that is missing fails its test, and says which package has it.

#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it has to be")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use block_io::{BlockDevice, CacheMode, QueueChoice, ZeroMode};
use block_types::{ByteCount, ByteRange, ErrorKind, Extent, ExtentState};
use common::patchwork::{BLOCK, Patchwork};
use common::{QUEUES, Served, at, file, options, pattern};
use nbd::wire::Dialect;
use nbd::{Client, Export, ExportTable, Listener, Server, Transport, Uri};

const SIZE: u64 = 16 << 20;

/// A peer's program; `package` is Debian's name for where it is.
fn peer(program: &str, package: &str) -> Command {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).exists())
    });
    assert!(found, "{program} is missing: install the Debian package {package}");
    Command::new(program)
}

fn nbdinfo() -> Command {
    peer("nbdinfo", "libnbd-bin")
}

fn qemu_img() -> Command {
    peer("qemu-img", "qemu-utils")
}

/// Runs `command`; what it prints, if it succeeds.
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?} ends with {status}\n{stdout}\n{stderr}");
    stdout.into_owned()
}

/// A served device of each kind that the server treats differently, with some data and holes.
fn served_devices(test: impl Fn(&str, &Served, &Arc<dyn BlockDevice>)) {
    for queue in QUEUES {
        let dir = tempfile::tempdir().unwrap();
        let pair = [CacheMode::Cached, CacheMode::Direct];
        let patches = pair.map(|cache| file(dir.path(), &format!("p-{cache:?}"), SIZE, cache));
        let devices: [(&str, Arc<dyn BlockDevice>); 3] = [
            ("cached", Arc::new(file(dir.path(), "cached", SIZE, CacheMode::Cached))),
            ("direct", Arc::new(file(dir.path(), "direct", SIZE, CacheMode::Direct))),
            ("patchwork", Arc::new(Patchwork::new(patches, SIZE / BLOCK))),
        ];
        for (name, device) in devices {
            device.write_at(&pattern(1, 3 << 20), at(1 << 20)).unwrap();
            device.write_at(&pattern(2, BLOCK as usize), at(9 << 20)).unwrap();
            let served = Served::new(device.clone(), queue);
            test(&format!("{name}, {queue:?}"), &served, &device);
        }
    }
}

fn content(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.size().as_usize()];
    device.read_at(&mut bytes, at(0)).unwrap();
    bytes
}

fn raw_uri(served: &Served) -> String {
    served.uri().to_string()
}

#[test]
fn nbdinfo_sees_size_abilities_and_map() {
    served_devices(|what, served, device| {
        let uri = raw_uri(served);
        let size = run(nbdinfo().args(["--size", &uri]));
        assert_eq!(size.trim(), SIZE.to_string(), "{what}");
        let abilities = [
            "multi-conn",
            "flush",
            "fua",
            "trim",
            "zero",
            "fast-zero",
            "df",
            "cache",
            "structured-reply",
        ];
        for ability in abilities {
            run(nbdinfo().args(["--can", ability, &uri]));
        }
        let read_only = nbdinfo().args(["--is", "read-only", &uri]).status().unwrap();
        assert!(!read_only.success(), "{what}");
        // Offset, length and flags of each line.
        let map = run(nbdinfo().args(["--map", &uri]));
        let lines: Vec<Vec<u64>> = map
            .lines()
            .map(|line| line.split_whitespace().take(3).map(|word| word.parse().unwrap()).collect())
            .collect();
        let expected = [
            [0, 1 << 20, 3],
            [1 << 20, 3 << 20, 0],
            [4 << 20, 5 << 20, 3],
            [9 << 20, BLOCK, 0],
            [(9 << 20) + BLOCK, (7 << 20) - BLOCK, 3],
        ];
        assert_eq!(lines, expected, "{what}");
        let json = run(nbdinfo().args(["--json", &uri]));
        let minimum = device.limits().minimum.get();
        assert!(json.contains(&format!("\"block_size_minimum\": {minimum}")), "{json}");
    });
}

#[test]
fn nbdinfo_lists_and_describes_exports() {
    let dir = tempfile::tempdir().unwrap();
    let exports = Arc::new(ExportTable::new());
    for name in ["alpha", "beta@monday"] {
        let device = Arc::new(file(dir.path(), name, SIZE, CacheMode::Cached));
        let export = Export::new(name, device).unwrap().described(format!("disk {name}"));
        exports.insert(export.read_only());
    }
    let socket = dir.path().join("nbd.sock");
    let listeners = vec![Listener::unix(&socket).unwrap()];
    let _server = Server::start(listeners, exports, options(QueueChoice::Auto)).unwrap();
    let uri = Uri::unix(&socket, "").to_string();
    let list = run(nbdinfo().args(["--list", "--json", &uri]));
    for word in ["\"alpha\"", "\"beta@monday\"", "disk alpha", "\"is_read_only\": true"] {
        assert!(list.contains(word), "{word} in {list}");
    }
    let uri = Uri::unix(&socket, "beta@monday").to_string();
    run(nbdinfo().args(["--is", "read-only", &uri]));
    let refused = nbdinfo().arg(Uri::unix(&socket, "gamma").to_string()).output().unwrap();
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("No such file"), "{words}");
}

#[test]
fn nbdcopy_both_ways_over_several_connections() {
    served_devices(|what, served, device| {
        let (out, back) = (served.dir.path().join("out"), served.dir.path().join("in"));
        let mut copy = peer("nbdcopy", "libnbd-bin");
        run(copy.arg("--connections=4").arg(raw_uri(served)).arg(&out));
        assert!(std::fs::read(&out).unwrap() == content(&**device), "{what}");

        let mut image = pattern(77, SIZE as usize);
        image[5 << 20..8 << 20].fill(0);
        std::fs::write(&back, &image).unwrap();
        let mut copy = peer("nbdcopy", "libnbd-bin");
        run(copy.args(["--connections=4", "--flush"]).arg(&back).arg(raw_uri(served)));
        assert!(content(&**device) == image, "{what}");
        served.wait_until_alone();
    });
}

#[test]
fn qemu_img_converts_maps_and_compares() {
    served_devices(|what, served, device| {
        let (uri, image) = (raw_uri(served), served.dir.path().join("image"));
        let image = image.to_str().unwrap();
        run(qemu_img().args(["convert", "-f", "raw", "-O", "raw", &uri, image]));
        assert!(std::fs::read(image).unwrap() == content(&**device), "{what}");
        let map = run(qemu_img().args(["map", "--output=json", "-f", "raw", &uri]));
        let starts = map.matches("\"start\"").count();
        assert_eq!((starts, map.matches("\"data\": true").count()), (5, 2), "{what}: {map}");

        let mut bytes = pattern(5, SIZE as usize);
        bytes[2 << 20..10 << 20].fill(0);
        std::fs::write(image, &bytes).unwrap();
        run(qemu_img().args(["convert", "-n", "-f", "raw", "-O", "raw", image, &uri]));
        run(qemu_img().args(["compare", "-f", "raw", "-F", "raw", image, &uri]));
        assert!(content(&**device) == bytes, "{what}");
    });
}

/// `qemu-io` with a conversation, so that its connection can be looked at.
struct QemuIo {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl QemuIo {
    fn start(uri: &str) -> Self {
        let mut child = peer("qemu-io", "qemu-utils")
            .args(["-f", "raw", uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// Gives a command; the line of its answer that holds `expected`.
    fn say(&mut self, command: &str, expected: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
        let mut heard = String::new();
        while !heard.contains(expected) {
            let before = heard.len();
            let read = self.out.read_line(&mut heard).unwrap();
            let bad = heard[before..].contains("failed");
            assert!(read > 0 && !bad, "{command}: {heard}");
        }
    }
}

impl Drop for QemuIo {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
fn qemu_io_with_extended_headers() {
    served_devices(|what, served, device| {
        let mut io = QemuIo::start(&raw_uri(served));
        io.say("write -P 0x5a 1M 64k", "wrote 65536/65536");
        assert_eq!(served.server.clients()[0].dialect, Some(Dialect::Extended), "{what}");
        io.say("read -P 0x5a 1M 64k", "read 65536/65536");
        io.say("write -f -P 0x11 3M 1M", "wrote 1048576/1048576");
        io.say("read -P 0x11 3M 1M", "read 1048576/1048576");
        io.say("write -z 1M 32k", "wrote 32768/32768");
        io.say("write -z -u 1081344 16k", "wrote 16384/16384");
        io.say("read -P 0 1M 48k", "read 49152/49152");
        io.say("read -P 0x5a 1097728 16k", "read 16384/16384");
        io.say("discard 0 1M", "discard 1048576/1048576");
        io.say("write -P 0x77 12M 4M", "wrote 4194304/4194304");
        // Says nothing, so it has to be the last: qemu-io does not look at lines it has read ahead.
        io.say("flush", "");
        drop(io);
        let bytes = content(&**device);
        assert!(bytes[12 << 20..].iter().all(|&byte| byte == 0x77), "{what}");
        assert!(bytes[1 << 20..(1 << 20) + (48 << 10)].iter().all(|&byte| byte == 0), "{what}");
    });
}

#[test]
fn qemu_io_is_refused_by_a_read_only_export() {
    let dir = tempfile::tempdir().unwrap();
    let device = Arc::new(file(dir.path(), "disk", SIZE, CacheMode::Direct));
    let export = Export::new("disk", device).unwrap().read_only();
    let served = Served::with(export, options(QueueChoice::Auto));
    let uri = raw_uri(&served);
    let write = ["-f", "raw", "-c", "write 0 64k"];
    let refused = peer("qemu-io", "qemu-utils").args(write).arg(&uri).output().unwrap();
    let words = String::from_utf8_lossy(&refused.stderr).to_lowercase();
    assert!(!refused.status.success() && words.contains("permission denied"), "{words}");
    run(peer("qemu-io", "qemu-utils").args(["-r", "-f", "raw", "-c", "read -P 0 0 64k"]).arg(&uri));
}

#[test]
fn fio_verifies_what_it_wrote() {
    served_devices(|what, served, _| {
        for (rw, block, depth) in
            [("randwrite", "4k", "32"), ("write", "4k", "32"), ("randwrite", "256k", "8")]
        {
            let out = run(peer("fio", "fio")
                .args(["--name=t", "--ioengine=nbd", "--size=16m", "--verify=crc32c"])
                .args(["--verify_fatal=1", "--do_verify=1", "--fsync=100"])
                .arg(format!("--rw={rw}"))
                .arg(format!("--bs={block}"))
                .arg(format!("--iodepth={depth}"))
                .arg(format!("--uri={}", raw_uri(served))));
            assert!(out.contains("err= 0"), "{what}: {out}");
        }
    });
}

#[test]
fn the_peers_come_by_tcp_too() {
    let dir = tempfile::tempdir().unwrap();
    let device = Arc::new(file(dir.path(), "disk", SIZE, CacheMode::Cached));
    device.write_at(&pattern(3, 5 << 20), at(0)).unwrap();
    let exports = Arc::new(ExportTable::single(Export::new("disk", device.clone()).unwrap()));
    let listener = Listener::tcp("127.0.0.1:0").unwrap();
    let port = listener.tcp_address().unwrap().port();
    let server = Server::start(vec![listener], exports, options(QueueChoice::Auto)).unwrap();
    let transport = Transport::Tcp { host: "127.0.0.1".to_owned(), port };
    let uri = Uri { transport, export: "disk".to_owned() };
    let out = dir.path().join("out");
    run(peer("nbdcopy", "libnbd-bin").arg(uri.to_string()).arg(&out));
    assert!(std::fs::read(&out).unwrap() == content(&*device));
    let client = Client::connect(&uri).unwrap();
    assert!(server.clients()[0].peer.starts_with("127.0.0.1:"));
    client.write_at(&pattern(4, 2 << 20), at(1 << 20)).unwrap();
    assert!(content(&*device)[1 << 20..3 << 20] == pattern(4, 2 << 20));
}

/// A server of a peer, on a socket.
struct PeerServer {
    child: Child,
    socket: PathBuf,
}

impl PeerServer {
    fn start(mut command: Command, socket: &Path) -> Self {
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        let socket = socket.to_owned();
        common::wait_for("the peer's server", || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
        Self { child, socket }
    }

    fn client(&self, export: &str) -> Client {
        Client::connect(&Uri::unix(&self.socket, export)).unwrap()
    }
}

impl Drop for PeerServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What our client does with a server that exports a sparse raw file at `path`.
fn use_server(client: &Client, path: &Path) {
    assert_eq!(client.size(), ByteCount::new(SIZE));
    let range = |start, len| ByteRange::new(at(start), ByteCount::new(len));
    let bytes = pattern(8, 3 << 20);
    client.write_at(&bytes, at(4 << 20)).unwrap();
    let mut back = vec![0; bytes.len()];
    client.read_at(&mut back, at(4 << 20)).unwrap();
    assert!(back == bytes);
    client
        .zero(range(5 << 20, 1 << 20), ZeroMode { may_unmap: true, only_if_fast: false })
        .unwrap();
    client.discard(range(6 << 20, 64 << 10)).unwrap();
    client.flush().unwrap();
    let stored = std::fs::read(path).unwrap();
    assert!(stored[4 << 20..5 << 20] == bytes[..1 << 20]);
    assert!(stored[5 << 20..6 << 20].iter().all(|&byte| byte == 0));

    let (mut zeros, mut end) = (0, 0);
    client
        .extents(range(0, SIZE), &mut |Extent { range, state }| {
            assert_eq!(range.start.get(), end, "without gaps");
            end = range.end().get();
            if state != ExtentState::Data {
                zeros += range.len.get();
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(end, SIZE);
    assert!(zeros >= SIZE - (3 << 20), "{zeros} bytes of zeros");
    let past = client.read_at(&mut [0; 512], at(SIZE)).unwrap_err();
    assert_eq!(past.kind(), ErrorKind::OutOfRange);
}

#[test]
fn our_client_of_qemu_nbd() {
    let dir = tempfile::tempdir().unwrap();
    let (image, socket) = (dir.path().join("image"), dir.path().join("sock"));
    std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
    let mut command = peer("qemu-nbd", "qemu-utils");
    command.args([
        "-t",
        "-e",
        "4",
        "-f",
        "raw",
        "-x",
        "disk",
        "-D",
        "a disk",
        "--discard=unmap",
        "-k",
    ]);
    let server = PeerServer::start(
        {
            command.arg(&socket).arg(&image);
            command
        },
        &socket,
    );
    let listed = Client::list(&Transport::Unix(socket)).unwrap();
    assert_eq!((&*listed[0].name, &*listed[0].description), ("disk", "a disk"));
    let client = server.client("disk");
    assert_eq!(client.dialect(), Dialect::Extended);
    use_server(&client, &image);
    let error = Client::connect(&Uri::unix(&server.socket, "nothing")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn our_client_of_nbdkit() {
    let dir = tempfile::tempdir().unwrap();
    let (image, socket) = (dir.path().join("image"), dir.path().join("sock"));
    std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
    let mut command = peer("nbdkit", "nbdkit");
    command.args(["-f", "-U"]).arg(&socket).arg("file").arg(&image);
    let server = PeerServer::start(command, &socket);
    let client = server.client("");
    assert_eq!(client.dialect(), Dialect::Structured);
    use_server(&client, &image);
}

#[test]
fn our_client_of_an_nbdkit_that_knows_nothing_new() {
    let dir = tempfile::tempdir().unwrap();
    let (image, socket) = (dir.path().join("image"), dir.path().join("sock"));
    std::fs::write(&image, vec![0; SIZE as usize]).unwrap();
    let mut command = peer("nbdkit", "nbdkit");
    command.args(["-f", "--no-sr", "--filter=nozero", "-U"]).arg(&socket).arg("file").arg(&image);
    let server = PeerServer::start(command, &socket);
    let client = server.client("");
    assert_eq!(client.dialect(), Dialect::Simple);
    let range = ByteRange::new(at(512), ByteCount::new(3 << 20));
    client.write_at(&pattern(2, 4 << 20), at(0)).unwrap();
    client.zero(range, ZeroMode::default()).unwrap();
    let fast = ZeroMode { may_unmap: true, only_if_fast: true };
    assert_eq!(client.zero(range, fast).unwrap_err().kind(), ErrorKind::Unsupported);
    let stored = std::fs::read(&image).unwrap();
    assert!(stored[512..][..3 << 20].iter().all(|&byte| byte == 0));
    assert!(stored[..512] == pattern(2, 4 << 20)[..512]);
}

/// A reply with holes, read by a peer: qemu's and libnbd's parsers are strict about chunks.
#[test]
fn the_peers_understand_holes_in_replies() {
    served_devices(|what, served, device| {
        let mut io = QemuIo::start(&raw_uri(served));
        // Across the begin of the data, their end, and the single block.
        io.say("read 512k 4M", "read 4194304/4194304");
        io.say("read -P 0 8M 1M", "read 1048576/1048576");
        io.say("read 8M 2M", "read 2097152/2097152");
        drop(io);
        let out = served.dir.path().join("out");
        let mut copy = peer("nbdcopy", "libnbd-bin");
        run(copy.args(["--request-size=1048576", "--no-extents"]).arg(raw_uri(served)).arg(&out));
        assert!(std::fs::read(&out).unwrap() == content(&**device), "{what}");
    });
}
