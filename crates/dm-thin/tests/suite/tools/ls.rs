//! `ls` against `thin_ls`: equal to the byte.

use block_types::ErrorKind;
use dm_thin::GuestBlock;
use dm_thin::dump::View;
use dm_thin::ls::{Column, list, write_table};

use super::{IMAGES, Metadata, restored, same};

/// The columns that thin_ls 0.9 has.
const COLUMNS: &str = "DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS,MAPPED_SECTORS,\
                       EXCLUSIVE_SECTORS,SHARED_SECTORS,MAPPED_BYTES,EXCLUSIVE_BYTES,SHARED_BYTES,\
                       MAPPED,EXCLUSIVE,SHARED,TRANSACTION,CREATE_TIME,SNAP_TIME";

fn columns(names: &str) -> Vec<Column> {
    names.split(',').map(|name| name.parse().expect("a column")).collect()
}

fn table(metadata: &Metadata, columns: &[Column], headers: bool) -> String {
    let mut out = Vec::new();
    write_table(metadata.device.clone(), View::Live, columns, headers, &mut out).expect("listed");
    String::from_utf8(out).expect("text")
}

/// Compares all columns with those of `thin_ls`.
pub(super) fn compare(metadata: &Metadata, what: &str) {
    let theirs = metadata.peer("thin_ls", &["-o", COLUMNS]);
    same(&table(metadata, &columns(COLUMNS), true), &theirs, what);
}

#[test]
fn every_image_is_listed_as_thin_ls_has_it() {
    for image in IMAGES {
        let metadata = Metadata::image(image);
        compare(&metadata, image);
        let plain = metadata.peer("thin_ls", &["--no-headers"]);
        same(&table(&metadata, &Column::DEFAULT, false), &plain, image);
    }
}

#[test]
fn sizes_are_rounded_as_thin_ls_does() {
    let mut xml = String::from(
        "<superblock uuid=\"\" time=\"0\" transaction=\"0\" data_block_size=\"128\" \
         nr_data_blocks=\"400000\">",
    );
    let mut data = 0;
    for (device, len) in [1, 15, 16, 127, 128, 129, 8191, 8192, 8193, 131_072, 131_073, 140_000]
        .into_iter()
        .enumerate()
    {
        xml += &format!(
            "<device dev_id=\"{device}\" mapped_blocks=\"{len}\" transaction=\"{len}\" \
             creation_time=\"0\" snap_time=\"0\"><range_mapping origin_begin=\"{device}\" \
             data_begin=\"{data}\" length=\"{len}\" time=\"0\"/></device>"
        );
        data = (data + len) % 200_000;
    }
    xml += "</superblock>";
    for sectors in [128, 384, 2_097_152] {
        let block_size = format!("data_block_size=\"{sectors}\"");
        let xml = xml.replace("data_block_size=\"128\"", &block_size);
        compare(&restored(&xml, 16 << 20), &block_size);
    }
}

/// What thin_ls 1.3.3 shows of these columns, which 0.9 does not have.
#[test]
fn the_highest_block_is_shown_as_1_3_does() {
    let metadata = Metadata::image("tpt133-restored");
    let columns = columns("DEV,HIGHEST_BLOCK,HIGHEST_SECTOR,HIGHEST_BYTE,HIGHEST_MAPPED");
    assert_eq!(
        table(&metadata, &columns, true),
        "DEV HIGHEST_BLOCK HIGHEST_SECTOR HIGHEST_BYTE HIGHEST_MAPPED \n  \
           1           500          64127     32833535          31MiB \n  \
           2           199          25599     13107199          12MiB \n  \
           3           200          25727     13172735          13MiB \n"
    );
}

#[test]
fn figures_are_there_for_programs() {
    let metadata = Metadata::image("k61-m2.snaps");
    let listing = list(metadata.device.clone(), View::Snapshot, true).expect("listed");
    assert_eq!(listing.block_size.get(), 65_536);
    let rows: Vec<_> = listing
        .rows
        .iter()
        .map(|row| (row.id.get(), row.exclusive, row.shared(), row.highest.map(GuestBlock::get)))
        .collect();
    let shared = |id| (id, Some(0), Some(300), Some(299));
    assert_eq!(
        rows,
        [shared(0), (1, Some(1), Some(299), Some(299)), shared(2), shared(3), shared(4)]
    );
    let quick = list(metadata.device, View::Live, false).expect("listed");
    assert!(quick.rows.iter().all(|row| row.exclusive.is_none() && row.shared().is_none()));
}

#[test]
fn unknown_columns_are_refused_by_name() {
    let error = "MAPED".parse::<Column>().expect_err("unknown");
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.to_string().starts_with("column \"MAPED\": is not known; choose from DEV, "));
    for name in Column::names() {
        assert_eq!(name.parse::<Column>().expect("a column").name(), name);
    }
}
