//! `firn image` and the serving of an image, against qemu-img in both directions.

mod chain;
mod change;
mod copy;
mod gate;
mod jobs;
mod locks;
mod make;
mod serve;
mod verbs;

use serde_json::Value;
use testkit::peer::{Outcome, peer};

use crate::lab::Lab;

const MIB: u64 = 1 << 20;

/// Runs qemu-img with words that have no blanks in them.
fn qemu(lab: &Lab, words: &str) -> Outcome {
    peer("qemu-img").args(words.split_whitespace()).in_folder(lab.path("")).run()
}

/// Runs qemu-img, which has to succeed, and reads its JSON.
fn qemu_json(lab: &Lab, words: &str) -> Value {
    let text = qemu(lab, &format!("{words} --output=json")).expect_code(0);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words}: {error}: {text}"))
}

/// Has QEMU find the qcow2 image `name` sound, without leaks.
fn assert_sound(lab: &Lab, name: &str) {
    qemu(lab, &format!("check -f qcow2 {name}")).expect_code(0);
    lab.ok(&format!("image check {name}"));
}

/// Has both find that two images hold the same.
fn assert_same(lab: &Lab, one: &str, other: &str) {
    qemu(lab, &format!("compare {one} {other}")).expect_code(0);
    lab.ok(&format!("image compare {one} {other}"));
}

/// Runs one command of qemu-io on the image `name`.
fn qemu_io(lab: &Lab, name: &str, command: &str) {
    peer("qemu-io").args(["-c", command, name]).in_folder(lab.path("")).ok();
}
