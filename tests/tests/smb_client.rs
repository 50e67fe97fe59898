//! The SMB2 client against one unmodified `smbd`: what it asks for is what it gets.
//!
//! These tests say nothing about Holdfast. They are what makes the client a witness that the others can rely
//! on.

use std::time::Duration;

use harness::{
    samba::{SambaSite, Smbd, SmbdOptions, samba_or_skip},
    smb_client::{
        AccessMask, Break, Client, CreateAction, CreateRequest, Credentials, Lease, LeaseState, LeaseVersion,
        LockElement, LockSequence, NtStatus, Opened, OplockLevel, Session, ShareAccess, SmbError, Tree,
    },
};

/// How long a break notification may take that is certain to come.
const BREAK_TIMEOUT: Duration = Duration::from_secs(10);

/// A site with one running node, or `None` without Samba.
async fn one_node() -> Option<(SambaSite, Smbd)> {
    let site = SambaSite::new(samba_or_skip()?).unwrap();
    let mut smbd = site.smbd("node", SmbdOptions::default()).unwrap();
    smbd.start().await.unwrap();
    Some((site, smbd))
}

async fn connect(client: &Client, smbd: &Smbd) -> (Session, Tree) {
    let session = client.connect(smbd.address()).await.unwrap();
    let share = session.tree_connect(&smbd.share()).await.unwrap();
    (session, share)
}

/// Loses the connection of an open, and has the open back on a new one.
async fn lose_and_reclaim(
    client: &Client,
    smbd: &Smbd,
    session: &Session,
    open: &Opened,
) -> (Session, Opened) {
    session.drop_connection().await;
    let session = client.reconnect(smbd.address(), session.id()).await.unwrap();
    let share = session.tree_connect(&smbd.share()).await.unwrap();
    let reclaimed = share.create(open.reconnect_request()).await.unwrap();
    assert_eq!(reclaimed.file_id().persistent, open.file_id().persistent);
    assert_eq!(reclaimed.response().action, CreateAction::Opened);
    (session, reclaimed)
}

#[tokio::test]
async fn durable_opens_of_every_kind_come_back_after_a_tcp_drop() {
    let Some((site, smbd)) = one_node().await else { return };
    let client = Client::new(site.credentials());
    let lease_v1 = Lease { version: LeaseVersion::V1, ..Lease::request(LeaseState::READ_WRITE_HANDLE) };
    let requests = [
        CreateRequest::new("batch1").with_oplock(OplockLevel::Batch).durable_v1(),
        CreateRequest::durable_v2_with_batch("batch2"),
        CreateRequest::new("lease1").with_lease(lease_v1).durable_v1(),
        CreateRequest::durable_v2_with_lease("lease2"),
        CreateRequest::new("lease_rh").with_lease(Lease::request(LeaseState::READ_HANDLE)).durable_v2(),
    ];
    for request in requests {
        let (session, share) = connect(&client, &smbd).await;
        let wanted = request.lease;
        let open = share.create(request).await.unwrap();
        assert!(open.is_durable(), "{open:?}");
        assert_eq!(open.lease_state(), wanted.map_or(LeaseState::NONE, |lease| lease.state));

        let (_session, reclaimed) = lose_and_reclaim(&client, &smbd, &session, &open).await;
        assert_eq!(reclaimed.response().oplock_level, open.response().oplock_level);
        assert_eq!(reclaimed.response().lease, open.response().lease);
        assert_ne!(reclaimed.file_id().volatile, 0);
        reclaimed.close().await.unwrap();
    }
}

#[tokio::test]
async fn an_open_without_caching_is_not_durable() {
    let Some((site, smbd)) = one_node().await else { return };
    let client = Client::new(site.credentials());
    let (session, share) = connect(&client, &smbd).await;
    let open = share.create(CreateRequest::new("plain").durable_v2()).await.unwrap();
    assert!(!open.is_durable());

    session.drop_connection().await;
    let (_session, share) = connect(&client, &smbd).await;
    let refusal = share.create(open.reconnect_request()).await.unwrap_err();
    assert_eq!(refusal.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND));
}

#[tokio::test]
async fn data_and_locks_are_there_after_the_reclaim() {
    let Some((site, smbd)) = one_node().await else { return };
    let client = Client::new(site.credentials());
    let (session, share) = connect(&client, &smbd).await;
    let open = share.create(CreateRequest::durable_v2_with_lease("file")).await.unwrap();
    assert_eq!(open.write(0, b"hold fast").await.unwrap(), 9);
    open.lock(&[LockElement::exclusive(0, 4), LockElement::shared(100, 1)]).await.unwrap();

    let (_session, open) = lose_and_reclaim(&client, &smbd, &session, &open).await;
    assert_eq!(open.read(5, 100).await.unwrap(), b"fast");
    let unlock = [LockElement::unlock(0, 4)];
    open.lock(&unlock).await.unwrap();
    assert_eq!(open.lock(&unlock).await.unwrap_err().status(), Some(NtStatus::RANGE_NOT_LOCKED));
    open.close().await.unwrap();
}

#[tokio::test]
async fn a_lock_that_is_sent_again_is_recognised_by_its_sequence() {
    let Some((site, smbd)) = one_node().await else { return };
    let client = Client::new(site.credentials());
    let (_session, share) = connect(&client, &smbd).await;
    let open = share.create(CreateRequest::durable_v2_with_batch("file")).await.unwrap();
    let lock = [LockElement::exclusive(0, 1)];
    let sequence = LockSequence { index: 1, number: 1 };
    open.lock_with_sequence(&lock, sequence).await.unwrap();
    open.lock_with_sequence(&lock, sequence).await.unwrap();
    let next = LockSequence { index: 1, number: 2 };
    assert_eq!(
        open.lock_with_sequence(&lock, next).await.unwrap_err().status(),
        Some(NtStatus::LOCK_NOT_GRANTED)
    );
}

#[tokio::test]
async fn a_waiting_lock_is_granted_when_the_other_one_goes() {
    let Some((site, smbd)) = one_node().await else { return };
    let (_session, share) = connect(&Client::new(site.credentials()), &smbd).await;
    let holder = share.create(CreateRequest::new("file")).await.unwrap();
    let waiter = share.create(CreateRequest::new("file")).await.unwrap();
    holder.lock(&[LockElement::exclusive(0, 1)]).await.unwrap();

    // The first answer to the waiter is STATUS_PENDING, which the client must not take for the last word.
    let wanted = [LockElement::exclusive(0, 1).waiting()];
    let waiting = waiter.lock(&wanted);
    let unlock = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        holder.lock(&[LockElement::unlock(0, 1)]).await.unwrap();
    };
    let (waited, ()) = tokio::join!(waiting, unlock);
    waited.unwrap();
}

#[tokio::test]
async fn lease_and_oplock_breaks_arrive_and_can_be_acknowledged() {
    let Some((site, smbd)) = one_node().await else { return };
    let (session, share) = connect(&Client::new(site.credentials()), &smbd).await;
    let mut breaks = session.breaks();
    let (_other_session, other_share) = connect(&Client::new(site.credentials()), &smbd).await;

    let leased = share.create(CreateRequest::durable_v2_with_lease("leased")).await.unwrap();
    let key = leased.response().lease.unwrap().key;
    let intruder = other_share.create(CreateRequest::new("leased"));
    let holder = async {
        let notification = breaks.next(BREAK_TIMEOUT).await.unwrap();
        let Break::Lease { key: broken, current, new, ack_required: true, .. } = notification else {
            panic!("{notification:?}")
        };
        assert_eq!((broken, current, new), (key, LeaseState::READ_WRITE_HANDLE, LeaseState::READ_HANDLE));
        share.acknowledge_lease_break(key, new).await.unwrap();
    };
    let (intruder, ()) = tokio::join!(intruder, holder);
    intruder.unwrap();

    let batch = share.create(CreateRequest::durable_v2_with_batch("batch")).await.unwrap();
    let intruder = other_share.create(CreateRequest::new("batch"));
    let holder = async {
        let notification = breaks.next(BREAK_TIMEOUT).await.unwrap();
        let expected = Break::Oplock { file_id: batch.file_id(), level: OplockLevel::LevelII };
        assert_eq!(notification, expected);
        batch.acknowledge_oplock_break(OplockLevel::LevelII).await.unwrap();
    };
    let (intruder, ()) = tokio::join!(intruder, holder);
    intruder.unwrap();
}

#[tokio::test]
async fn rename_delete_logoff_and_tree_disconnect() {
    let Some((site, smbd)) = one_node().await else { return };
    let client = Client::new(site.credentials());
    let (session, share) = connect(&client, &smbd).await;
    session.echo().await.unwrap();
    let open = share.create(CreateRequest::durable_v2_with_lease("before")).await.unwrap();
    open.rename("after", false).await.unwrap();
    assert!(site.share_dir().join("after").exists());
    open.set_delete_pending(true).await.unwrap();
    open.close().await.unwrap();
    assert!(!site.share_dir().join("after").exists());

    // A tree disconnect closes even durable opens, a logoff does not.
    let closed = share.create(CreateRequest::durable_v2_with_lease("closed")).await.unwrap();
    share.disconnect().await.unwrap();
    let share = session.tree_connect(&smbd.share()).await.unwrap();
    let kept = share.create(CreateRequest::durable_v2_with_lease("kept")).await.unwrap();
    session.logoff().await.unwrap();
    let (_session, share) = connect(&client, &smbd).await;
    let refusal = share.create(closed.reconnect_request()).await.unwrap_err();
    assert_eq!(refusal.status(), Some(NtStatus::OBJECT_NAME_NOT_FOUND));
    share.create(kept.reconnect_request()).await.unwrap();
}

#[tokio::test]
async fn hundreds_of_requests_share_one_connection() {
    let Some((site, smbd)) = one_node().await else { return };
    let (_session, share) = connect(&Client::new(site.credentials()), &smbd).await;
    let opens = futures::future::try_join_all(
        (0..300).map(|number| share.create(CreateRequest::durable_v2_with_lease(format!("file{number}")))),
    )
    .await
    .unwrap();
    // More than one credit's worth each.
    let data = vec![0x5A; 200_000];
    let writes = opens.iter().take(20).map(|open| open.write(0, &data));
    assert!(futures::future::try_join_all(writes).await.unwrap().iter().all(|&written| written == 200_000));
    let reads = opens.iter().take(20).map(|open| open.read(0, 200_000));
    assert!(futures::future::try_join_all(reads).await.unwrap().iter().all(|read| *read == data));
    futures::future::try_join_all(opens.iter().map(Opened::close)).await.unwrap();
}

#[tokio::test]
async fn refusals_and_losses_are_told_apart() {
    let Some((site, mut smbd)) = one_node().await else { return };
    let wrong = Client::new(Credentials::new(site.credentials().user, "wrong"));
    assert_eq!(wrong.connect(smbd.address()).await.unwrap_err().status(), Some(NtStatus::LOGON_FAILURE));

    let (session, share) = connect(&Client::new(site.credentials()), &smbd).await;
    let no_share = session.tree_connect(r"\\server\nothing").await.unwrap_err();
    assert_eq!(no_share.status(), Some(NtStatus::BAD_NETWORK_NAME));

    let alone = CreateRequest { share_access: ShareAccess::NONE, ..CreateRequest::new("file") };
    let _alone = share.create(alone).await.unwrap();
    let reader = CreateRequest { desired_access: AccessMask::READ_DATA, ..CreateRequest::new("file") };
    let refusal = share.create(reader).await.unwrap_err();
    assert_eq!(refusal.status(), Some(NtStatus::SHARING_VIOLATION));

    smbd.kill().unwrap();
    assert!(matches!(session.echo().await, Err(SmbError::Disconnected { .. })));
    assert_eq!(session.ended().await, "closed by the server");
    let nobody = Client::new(site.credentials()).connect(smbd.address()).await;
    assert!(matches!(nobody, Err(SmbError::Connect { .. })));

    smbd.start().await.unwrap();
    connect(&Client::new(site.credentials()), &smbd).await;
}
