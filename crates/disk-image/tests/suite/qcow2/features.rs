//! Images that Firn writes, judged by QEMU.

use super::common::{Folder, contents, same, text};
use super::read::LAYOUTS;
use block_io::BlockDevice;
use block_types::{ByteCount, ByteOffset};
use disk_image::qcow2::check;

#[test]
fn every_layout_is_written_to() {
    let folder = Folder::new();
    for layout in LAYOUTS {
        let size = 5 * (1 << 20) - 1536;
        let made = format!("create -q -f qcow2 -o {layout} a{layout}.qcow2 {size}");
        folder.img(&made);
        let name = format!("a{layout}.qcow2");
        let image = folder.open(&name);
        let mut disk = vec![0; size];
        for (at, len, salt) in
            [(0, 4096, 1), (70_000, 300_000, 2), (71_000, 512, 3), (size - 9000, 9000, 4)]
        {
            let bytes = text(len, salt);
            image.write_at(&bytes, ByteOffset::new(at as u64)).expect(layout);
            disk[at..at + len].copy_from_slice(&bytes);
        }
        same(&contents(&*image), &disk);
        image.flush().expect(layout);
        folder.check(&name);
        image.close().expect(layout);
        assert_eq!(image.size(), ByteCount::new(size as u64));
        drop(image);
        folder.check(&name);
        same(&folder.content(&name, "-f qcow2"), &disk);
        let report = check(&folder.host(&name, true)).expect("checked");
        assert!(report.is_sound(), "{layout}: {report:?}");
    }
}
