//! `firn pool trim`, on a pool that nobody has open and on one that is served.

use std::os::unix::fs::{FileExt, MetadataExt};

use block_io::BlockDevice;
use block_types::ByteOffset;

use crate::lab::{Lab, MIB};

#[test]
fn space_that_was_left_over_is_given_back() {
    let lab = Lab::new(&["db"], "16M");
    let server = lab.serve("");
    let client = lab.connect("db");
    client.write_at(&[7; 4096], ByteOffset::new(0)).unwrap();
    client.flush().unwrap();
    for round in 0..2 {
        // Somebody who had the pool before has left this in its free space.
        let data = std::fs::File::options().write(true).open(lab.path("lab/data")).unwrap();
        for piece in 0..64 {
            data.write_all_at(&vec![0xa5; MIB as usize], (1 << 30) + piece * MIB).unwrap();
        }
        data.sync_all().unwrap();
        let allocated = || data.metadata().unwrap().blocks() * 512;
        assert!(allocated() >= 64 * MIB);
        let job = lab.json("pool trim lab");
        assert_eq!((&job["kind"], &job["state"]), (&"trim".into(), &"done".into()), "{round}");
        assert!(job["done"].as_u64().unwrap() > 3 << 30, "{job}");
        assert!(allocated() < 64 * MIB, "{} are left", allocated());
    }
    assert!(lab.ok("job list lab").contains("trim"));
    let mut read = [0; 4096];
    client.read_at(&mut read, ByteOffset::new(0)).unwrap();
    assert!(read == [7; 4096]);
    drop(client);
    assert!(server.stop().success());
    assert!(lab.ok("pool trim lab").contains("given back"));
    lab.assert_sound();
}
