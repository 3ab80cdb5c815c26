//! The volume manager's transaction id: compared, then exchanged.

use super::Rig;

#[test]
fn set_transaction_id() {
    let mut rig = Rig::new(16);
    assert_eq!(rig.pool.transaction(), 0);
    rig.message("set_transaction_id 0 1234");
    rig.reopen();
    assert_eq!(rig.pool.transaction(), 1234);
    assert!(rig.pool.status_line().expect("a line").contains(" thin-pool 1234 "));
    rig.message("set_transaction_id 1234 18446744073709551615");
    rig.reopen();
    assert_eq!(rig.pool.transaction(), u64::MAX);
    rig.check();
}

#[test]
fn set_transaction_id_of_another_fails() {
    let rig = Rig::new(16);
    rig.message("set_transaction_id 0 5");
    for message in ["set_transaction_id 0 6", "set_transaction_id 6 5"] {
        assert_eq!(rig.refusal(message), "EINVAL", "{message}");
    }
    assert_eq!(rig.pool.transaction(), 5);
    rig.check();
}
