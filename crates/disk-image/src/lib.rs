//! Image formats, read and written: qcow2 and VHD. None knows the other; each folder has the same
//! nouns (layout, header, mapping, alloc, commit, check, repair, create).

mod luks;
pub mod qcow2;
pub mod vhd;
