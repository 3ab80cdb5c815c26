//! An ext4 file system on a volume, mounted by a Linux kernel: through `firn serve` and the
//! kernel's NBD client, both in the guest; and straight through the kernel's own thin target.

use std::fs::{self, File};
use std::time::Duration;

use testkit::kernel::Kernel;
use testkit::peer::peer;
use testkit::rng::Rng;

use crate::lab::{FIRN, Lab, MIB};

const LIMIT: Duration = Duration::from_secs(100);

/// Functions that both scripts use: files that say what they should hold.
const FILES: &str = r#"
set -e
make_files() { # FOLDER SEED
    mkdir -p "$1/d$2"
    for i in 1 2 3 4 5 6; do
        yes "$2 $i" | head -c $((i * 77777)) >"$1/d$2/f$i"
    done
}
sums() { (cd "$1" && find . -type f | sort | xargs sha256sum); }
same() { # WHAT EXPECTED FOLDER
    sums "$3" >/run/now
    cmp "$2" /run/now || { echo "$1: other files" >&2; diff "$2" /run/now >&2; exit 1; }
}
"#;

/// Attaches exports of a server that runs in the guest.
const SERVER: &str = r#"
modprobe nbd max_part=0
"$FIRN" serve lab >/run/server.log 2>&1 &
server=$!
tries=0
until [ -S lab/nbd.sock ]; do
    tries=$((tries + 1))
    [ $tries -lt 100 ] || { cat /run/server.log >&2; exit 1; }
    sleep 0.1
done
attach() { nbd-client -unix lab/nbd.sock "/dev/$2" -name "$1" -block-size 512 >/dev/null; }
detach() { nbd-client -d "/dev/$1" >/dev/null; }
firn() { "$FIRN" "$@" >/run/firn.log 2>&1 || { cat /run/firn.log >&2; exit 1; }; }
mkdir /run/m /run/c
"#;

/// Checksums before and after a snapshot, a clone and a rollback. The snapshot of `one` is taken of
/// a file system at rest, that of `busy` of one that is mounted and written.
const SESSION: &str = r#"
attach db nbd0
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 /run/m
make_files /run/m one
umount /run/m
mount /dev/nbd0 /run/m
sums /run/m >/run/one
firn snapshot create lab/db@one
make_files /run/m two
rm -r /run/m/done
sync
sums /run/m >/run/two
make_files /run/m three &
firn snapshot create lab/db@busy
wait $!
rm -r /run/m/dthree

attach db@one nbd1
mount -o ro,noload /dev/nbd1 /run/c
same 'the snapshot, mounted' /run/one /run/c
umount /run/c
detach nbd1

firn snapshot clone lab/db@one lab/first
attach first nbd1
mount /dev/nbd1 /run/c
same 'the clone' /run/one /run/c
make_files /run/c four
umount /run/c
e2fsck -fn /dev/nbd1 >/dev/null
detach nbd1

firn snapshot clone lab/db@busy lab/second
attach second nbd1
mount /dev/nbd1 /run/c
rm -rf /run/c/dthree
same 'the clone of a file system that was written' /run/two /run/c
umount /run/c
e2fsck -fn /dev/nbd1 >/dev/null
detach nbd1

same 'the volume beside its clones' /run/two /run/m
umount /run/m
firn snapshot rollback lab/db@one
mount /dev/nbd0 /run/m
same 'the volume, rolled back' /run/one /run/m
fstrim /run/m
make_files /run/m five
same_five=$(sums /run/m | sha256sum)
umount /run/m
mount /dev/nbd0 /run/m
[ "$same_five" = "$(sums /run/m | sha256sum)" ]
umount /run/m
e2fsck -fn /dev/nbd0 >/dev/null
detach nbd0
kill -TERM $server
wait $server
echo "$same_five"
"#;

#[test]
fn ext4_through_the_kernels_nbd_client() {
    peer("nbd-client");
    peer("mkfs.ext4");
    let lab = Lab::new(&["db"], "32M");
    let kernel = Kernel::new().modules(&[]).share(lab.folder()).env("FIRN", FIRN);
    let kernel = kernel.env("LAB", lab.folder()).limit(LIMIT);
    let script = [FILES, "cd \"$LAB\"\n", SERVER, SESSION].concat();
    let said = kernel.script(&script).run().unwrap_or_else(|error| panic!("{error}")).ok();
    assert_eq!(said.lines().count(), 1, "{said}");
    lab.assert_sound();
    let volumes = lab.json("volume list lab");
    assert_eq!(volumes.as_array().unwrap().len(), 3, "{volumes}");
    for node in ["db", "db@one", "first", "second"] {
        lab.ok(&format!("volume export lab/{node} out.img --force"));
        // The snapshots were mounted when they were taken: their journals are not empty.
        let check = if node.contains('@') { "-fy" } else { "-fn" };
        let outcome = peer("e2fsck").arg(check).arg(lab.path("out.img")).run();
        let code = outcome.code().unwrap();
        assert!(code == 0 || (check == "-fy" && code == 1), "{node}: {outcome}");
    }
}

/// The kernel's turn: the pool is closed, the kernel activates it.
const THIN: &str = r#"
size=$((DATA / 512))
dmsetup create pool --table "0 $size thin-pool /dev/ubda /dev/ubdb 128 0 1 skip_block_zeroing"
dmsetup create db --table "0 65536 thin /dev/mapper/pool $DB"
dmsetup create copy --table "0 65536 thin /dev/mapper/pool $COPY"
mkdir /run/m /run/c
mount /dev/mapper/db /run/m
mount /dev/mapper/copy /run/c
(cd /run/m && sha256sum -c --quiet /run/m/sums)
(cd /run/c && sha256sum -c --quiet /run/c/sums)
make_files /run/m kernel
(cd /run/m && find dkernel -type f | sort | xargs sha256sum >more)
rm /run/c/big
umount /run/m /run/c
e2fsck -fn /dev/mapper/db >/dev/null
dmsetup remove db; dmsetup remove copy; dmsetup remove pool
"#;

/// Makes an ext4 file system with files in `folder` and their checksums.
fn make_file_system(lab: &Lab) {
    let folder = lab.path("files");
    fs::create_dir(&folder).unwrap();
    for (name, len) in [("big", 5 << 20), ("small", 777), ("other", 300_000)] {
        let mut bytes = vec![0; len];
        Rng::new(len as u64).fill(&mut bytes);
        fs::write(folder.join(name), bytes).unwrap();
    }
    let sums = peer("sha256sum").args(["big", "small", "other"]).in_folder(&folder).ok();
    fs::write(folder.join("sums"), sums).unwrap();
    File::create(lab.path("disk.img")).unwrap().set_len(32 * MIB).unwrap();
    peer("mkfs.ext4").arg("-q").arg("-d").arg(&folder).arg(lab.path("disk.img")).ok();
}

#[test]
fn ext4_through_the_kernels_thin_target_and_back() {
    let lab = Lab::new(&["db"], "32M");
    make_file_system(&lab);
    lab.ok("volume import lab/db disk.img");
    lab.ok("snapshot create lab/db@one");
    lab.ok("snapshot clone lab/db@one lab/copy");
    let number = |words: &str, key: &str| lab.json(words)[key].as_u64().unwrap().to_string();
    // The kernel wants a data device of the pool's size.
    let size = number("pool status lab", "size");
    let kernel = Kernel::new().disk(lab.path("lab/metadata")).disk(lab.path("lab/data"));
    let kernel = kernel.env("DATA", size).limit(LIMIT);
    let kernel = kernel.env("DB", number("volume show lab/db", "id"));
    let kernel = kernel.env("COPY", number("volume show lab/copy", "id"));
    let script = [FILES, THIN].concat();
    kernel.script(&script).run().unwrap_or_else(|error| panic!("{error}")).ok();

    lab.assert_sound();
    let exported = |node: &str| {
        lab.ok(&format!("volume export lab/{node} out.img --force"));
        peer("e2fsck").arg("-fn").arg(lab.path("out.img")).ok();
        let folder = lab.path(&format!("out-{node}"));
        fs::create_dir(&folder).unwrap();
        let dump = format!("rdump / {}", folder.display());
        peer("debugfs").arg("-R").arg(dump).arg(lab.path("out.img")).ok();
        folder
    };
    let sums =
        |folder, file| peer("sha256sum").args(["-c", "--quiet", file]).in_folder(folder).ok();
    let db = exported("db");
    sums(db.clone(), "sums");
    sums(db, "more");
    assert!(!exported("copy").join("big").exists());
    sums(exported("db@one"), "sums");
}
