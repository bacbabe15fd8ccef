use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn now() -> u64 {
    clock::unix_seconds()
}

#[test]
fn an_identity_survives_a_restart_and_is_private() {
    let dir = tempfile::tempdir().unwrap();
    let first = Identity::load_or_create(dir.path()).unwrap();
    let again = Identity::load_or_create(dir.path()).unwrap();
    assert_eq!(first.node_id(), again.node_id());
    let mode = std::fs::metadata(dir.path().join(IDENTITY_FILE))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn node_ids_and_peer_ids_are_the_same_in_other_spellings() {
    let identity = Identity::generate();
    assert_eq!(peer_id_of(&identity.node_id()), Some(identity.peer_id()));
    assert_eq!(node_id_of(&identity.peer_id()), Some(identity.node_id()));
    let verifying = identity.signing_key().verifying_key();
    assert_eq!(NodeId(verifying.to_bytes()), identity.node_id());
}

#[test]
fn a_cluster_key_is_never_overwritten_and_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cluster.key");
    let key = ClusterKey::create(&path).unwrap();
    let error = ClusterKey::create(&path).unwrap_err();
    assert!(matches!(error, ClusterError::Exists { .. }), "{error}");
    assert_eq!(ClusterKey::load(&path).unwrap().cluster(), key.cluster());
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn another_file_is_told_from_a_cluster_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    for text in [
        "",
        "-----BEGIN PRIVATE KEY-----\n",
        "shoal cluster key v1\nAAAA\n",
        "shoal node identity v1\n",
    ] {
        std::fs::write(&path, text).unwrap();
        let error = ClusterKey::load(&path).unwrap_err().to_string();
        assert!(error.contains("is not a cluster key"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }
    let missing = ClusterKey::load(&dir.path().join("none")).unwrap_err();
    assert!(matches!(missing, ClusterError::Read { .. }));
}

#[test]
fn a_ticket_admits_its_node_to_its_cluster_until_it_expires() {
    let (ours, other) = (ClusterKey::generate(), ClusterKey::generate());
    let (us, them) = (Identity::generate(), Identity::generate());
    let admission = Admission::with_key(ours.clone(), &us);
    let good = ours.issue(them.node_id(), now() + 60, Roles::MEMBER);
    assert_eq!(admission.verify(&good, them.node_id()), Ok(()));

    let foreign = other.issue(them.node_id(), now() + 60, Roles::MEMBER);
    assert!(matches!(
        admission.verify(&foreign, them.node_id()),
        Err(AdmissionError::ForeignCluster { .. })
    ));
    let old = ours.issue(them.node_id(), now() - 10, Roles::MEMBER);
    assert!(matches!(
        admission.verify(&old, them.node_id()),
        Err(AdmissionError::Expired { .. })
    ));
    let third = Identity::generate().node_id();
    assert!(matches!(
        admission.verify(&good, third),
        Err(AdmissionError::WrongPeer { .. })
    ));
    let guest = ours.issue(them.node_id(), now() + 60, Roles(2));
    assert_eq!(
        admission.verify(&guest, them.node_id()),
        Err(AdmissionError::NotMember)
    );
    admission.ban(them.node_id());
    assert_eq!(
        admission.verify(&good, them.node_id()),
        Err(AdmissionError::Banned)
    );
}

#[test]
fn a_ticket_with_any_byte_changed_is_refused() {
    let key = ClusterKey::generate();
    let identity = Identity::generate();
    let admission = Admission::with_key(key.clone(), &Identity::generate());
    let bytes = key
        .issue(identity.node_id(), now() + 60, Roles::MEMBER)
        .encoded();
    for at in 0..bytes.len() {
        let mut forged = bytes.clone();
        forged[at] ^= 1;
        let verdict = Ticket::decode(&forged)
            .and_then(|ticket| admission.verify(&ticket, identity.node_id()));
        assert!(verdict.is_err(), "byte {at}");
    }
}

#[test]
fn a_ticket_survives_its_text_form_and_a_file_of_another_kind_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ticket");
    let key = ClusterKey::generate();
    let identity = Identity::generate();
    let ticket = key.issue(identity.node_id(), now() + 60, Roles::MEMBER);
    assert_eq!(ticket.to_string().lines().count(), 1);
    std::fs::write(&path, format!("{ticket}\n")).unwrap();
    assert_eq!(Ticket::load(&path).unwrap(), ticket);
    assert!(Admission::with_ticket(ticket, &identity).is_ok());
    std::fs::write(&path, "hello").unwrap();
    assert!(
        Ticket::load(&path)
            .unwrap_err()
            .to_string()
            .contains("is not a cluster ticket")
    );
}

#[test]
fn a_node_does_not_start_with_a_ticket_that_others_refuse() {
    let key = ClusterKey::generate();
    let identity = Identity::generate();
    let expired = key.issue(identity.node_id(), now() - 1, Roles::MEMBER);
    assert!(Admission::with_ticket(expired, &identity).is_err());
    let others = key.issue(Identity::generate().node_id(), now() + 60, Roles::MEMBER);
    assert!(Admission::with_ticket(others, &identity).is_err());
}

#[test]
fn a_swarm_of_one_lets_nobody_in() {
    let (us, them) = (Identity::generate(), Identity::generate());
    let (ours, theirs) = (Admission::alone(&us), Admission::alone(&them));
    assert!(ours.verify(&theirs.own_ticket(), them.node_id()).is_err());
    assert_eq!(ours.verify(&ours.own_ticket(), us.node_id()), Ok(()));
}
