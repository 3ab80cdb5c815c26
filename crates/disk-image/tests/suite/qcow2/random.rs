//! Random operations on images of every layout, against the model; checked by Firn and by QEMU.

use std::fs;
use std::sync::Arc;

use super::common::Folder;
use super::model::Setup;
use block_io::{BlockDevice, MemoryDevice};
use block_types::ErrorKind;
use disk_image::qcow2::check;
use testkit::rng::Rng;

#[test]
fn an_image_does_what_the_model_does() {
    let folder = Folder::with_backing();
    for seed in 0..60 {
        let mut rng = Rng::new(seed);
        let setup = Setup::random(&mut rng);
        let memory = Arc::new(MemoryDevice::from_bytes("image", setup.image()));
        let file: Arc<dyn BlockDevice> = memory.clone();
        let mut model = setup.model();
        for session in 0..4 {
            let image = setup.open(Arc::clone(&file)).expect("opened");
            for step in 0..60 {
                if let Err(error) = model.step(&image, &mut rng)
                    && error.kind() != ErrorKind::Unsupported
                {
                    panic!("seed {seed}, session {session}, step {step}: {error}");
                }
                if step % 20 == 0 {
                    model
                        .compare(&image)
                        .unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
                }
            }
            model.compare(&image).unwrap_or_else(|problem| panic!("seed {seed}: {problem}"));
            image.close().expect("closed");
            drop(image);
            let report = check(&file).expect("checked");
            assert!(report.is_sound(), "seed {seed}: {:?} {report:#?}", setup.options);
        }
        fs::write(folder.file("image"), memory.to_bytes()).expect("done");
        folder.check("image");
    }
}
