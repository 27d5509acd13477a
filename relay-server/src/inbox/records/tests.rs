#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::future::join_all;
use proptest::prelude::*;
use relay_protocol::webhook::Verdict;
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use super::sweep::Swept;
use super::*;
use crate::inbox::spool::{Body, MAX_INLINE};

const NOW: i64 = 1_800_000_000_000;
const SECOND: i64 = 1000;
const HOUR: i64 = 60 * 60 * SECOND;
const DAY: i64 = 24 * HOUR;
const ALICE: TokenId = TokenId(1);
const BOB: TokenId = TokenId(2);
const MUCH: Quota = Quota { count: 10_000_000, bytes: 1 << 40 };
const NO_LIMIT: Quotas = Quotas { inbox: MUCH, delivered: MUCH, token_bytes: 1 << 40, total_bytes: 1 << 40 };

async fn records() -> Records {
    let records = Records::temporary().unwrap();
    records.open_inbox("hooks", ALICE, "{}".to_owned(), 100, NOW).await.unwrap();
    records
}

fn new(body: &'static str) -> New {
    New {
        id: Ulid::generate(),
        inbox: "hooks".to_owned(),
        token: ALICE,
        received_at: NOW,
        since: NOW,
        take: Take::No,
        head: Bytes::from_static(b"head"),
        trailers: Bytes::new(),
        body: Body::inline(Bytes::from_static(body.as_bytes())),
        provider: None,
        event_id: None,
        event_type: None,
        verdict: None,
        dedupe_since: None,
        abandoned: CancellationToken::new(),
        quotas: NO_LIMIT,
    }
}

/// A webhook of an event, looked at for copies of the last day.
fn event(id: &str, body: &'static str, head: &'static str, at: i64) -> New {
    New {
        received_at: at,
        since: at,
        head: Bytes::from_static(head.as_bytes()),
        provider: Some("stripe".to_owned()),
        event_id: Some(id.to_owned()),
        verdict: Some(Verdict::Valid),
        dedupe_since: Some(at - DAY),
        ..new(body)
    }
}

async fn store(records: &Records, new: New) -> Seq {
    let (inbox, token, id) = (new.inbox.clone(), new.token, new.id);
    match records.accept(new).await.unwrap() {
        Accepted::Stored { .. } => records.show(&inbox, token, id).await.unwrap().unwrap().0.row.seq,
        other => panic!("{other:?}"),
    }
}

/// What the caller of `accept` may deliver.
fn taken(accepted: Accepted) -> Option<Due> {
    match accepted {
        Accepted::Stored { due } | Accepted::Newer { due, .. } => due,
        Accepted::Delivered { .. } => None,
    }
}

fn attempt(at: i64, status: Option<u16>) -> Attempt {
    let error = status.is_none().then(|| "refused".to_owned());
    Attempt { at, duration_ms: 12, status, error }
}

async fn deliver(records: &Records, seq: Seq, status: u16) {
    assert!(records.attempted(seq, attempt(NOW, Some(status)), Outcome::Delivered, Access::Write).await.unwrap());
}

/// What is due, which nobody delivers then.
async fn due(records: &Records, now: i64) -> Vec<Seq> {
    seqs(&take(records, now, false).await)
}

async fn take(records: &Records, now: i64, ordered: bool) -> Vec<Due> {
    records.due("hooks", now, ordered, 10).await.unwrap()
}

fn seqs(due: &[Due]) -> Vec<Seq> {
    due.iter().map(|due| due.seq).collect()
}

async fn list(records: &Records, state: Option<State>, before: Option<Seq>, limit: usize) -> Vec<Row> {
    records.list("hooks", ALICE, state, before, limit).await.unwrap().0
}

async fn inbox(records: &Records) -> Inbox {
    records.inbox("hooks").await.unwrap().unwrap()
}

#[tokio::test]
async fn what_was_accepted_comes_out_as_it_came() {
    let directory = tempfile::tempdir().unwrap();
    let records = Records::open(directory.path(), 0).unwrap();
    records.open_inbox("hooks", ALICE, r#"{"ordered":true}"#.to_owned(), 100, NOW).await.unwrap();
    let sent = New {
        trailers: Bytes::from_static(b"trailers"),
        event_type: Some("invoice.paid".to_owned()),
        ..event("evt_1", "a body", "a head", NOW)
    };
    let id = sent.id;
    let seq = store(&records, sent).await;
    records.close().await;
    assert_eq!(records.load(seq).await.unwrap_err(), StoreError::Closed);

    let records = Records::open(directory.path(), 0).unwrap();
    let Inbox { settings, waiting, bytes, oldest_at, .. } = inbox(&records).await;
    assert_eq!((settings.as_str(), waiting, bytes, oldest_at), (r#"{"ordered":true}"#, 1, 20, Some(NOW)));
    let stored = records.load(seq).await.unwrap().unwrap();
    assert_eq!((&*stored.row.head, &*stored.trailers), (&b"a head"[..], &b"trailers"[..]));
    assert_eq!(stored.body, StoredBody::Inline(Bytes::from_static(b"a body")));
    assert_eq!((stored.row.id, stored.row.received_at, stored.row.body_size), (id, NOW, 6));
    assert_eq!(stored.row.event_type.as_deref(), Some("invoice.paid"));
    assert_eq!(stored.row.verdict.as_deref(), Some("valid"));
    assert_eq!(due(&records, NOW).await, [seq]);
}

#[tokio::test]
async fn totals_are_those_of_all_inboxes() {
    let records = records().await;
    assert_eq!(records.totals().await.unwrap(), Totals { inboxes: 1, ..Totals::default() });
    records.open_inbox("other", BOB, "{}".to_owned(), 100, NOW).await.unwrap();
    store(&records, new("x")).await;
    store(
        &records,
        New { inbox: "other".to_owned(), token: BOB, received_at: NOW - HOUR, since: NOW - HOUR, ..new("12") },
    )
    .await;
    let told = store(&records, new("gone")).await;
    deliver(&records, told, 200).await;
    let totals =
        Totals { inboxes: 2, waiting: 2, delivered: 1, dead: 0, bytes: 4 + 1 + 4 + 2, oldest_at: Some(NOW - HOUR) };
    assert_eq!(records.totals().await.unwrap(), totals);
}

#[tokio::test]
async fn webhooks_go_out_in_the_order_in_which_they_came() {
    let records = records().await;
    let mut all = Vec::new();
    for at in [NOW, NOW - HOUR, NOW + HOUR] {
        // The order is that of arrival, whatever the clock said.
        all.push(store(&records, New { received_at: at, since: at, ..new("x") }).await);
    }
    assert_eq!(records.next_due("hooks", false).await.unwrap(), Some(0));
    let under_way = take(&records, NOW, false).await;
    assert_eq!(seqs(&under_way), all);
    assert_eq!(records.next_due("hooks", false).await.unwrap(), None);

    // The second one is to be tried again before the third came back.
    let again = Outcome::Again { at: NOW + 5 * SECOND };
    assert!(records.attempted(all[1], attempt(NOW, Some(500)), again, Access::Write).await.unwrap());
    deliver(&records, all[0], 200).await;
    assert_eq!(due(&records, NOW + 5 * SECOND).await, [], "all are under way yet");
    drop(under_way);
    assert_eq!(records.next_due("hooks", false).await.unwrap(), Some(0));
    let third = take(&records, NOW + 4 * SECOND, false).await;
    assert_eq!(seqs(&third), [all[2]]);
    assert_eq!(records.next_due("hooks", false).await.unwrap(), Some(NOW + 5 * SECOND));
    assert_eq!(due(&records, NOW + 5 * SECOND).await, [all[1]]);
}

#[tokio::test]
async fn in_order_nothing_overtakes_the_first() {
    let records = records().await;
    let first = store(&records, new("1")).await;
    let second = store(&records, New { take: Take::IfFirst, ..new("2") }).await;
    let under_way = take(&records, NOW, true).await;
    assert_eq!(seqs(&under_way), [first]);
    assert_eq!(seqs(&take(&records, NOW, true).await), [], "the first is under way");
    assert_eq!(records.next_due("hooks", true).await.unwrap(), None);
    let again = Outcome::Again { at: NOW + HOUR };
    records.attempted(first, attempt(NOW, None), again, Access::Write).await.unwrap();
    drop(under_way);
    assert_eq!(seqs(&take(&records, NOW + HOUR - 1, true).await), [], "the first is not due");
    assert_eq!(records.next_due("hooks", true).await.unwrap(), Some(NOW + HOUR));
    assert_eq!(records.next_due("hooks", false).await.unwrap(), Some(0));
    assert_eq!(seqs(&take(&records, NOW + HOUR, true).await), [first]);
    deliver(&records, first, 204).await;
    assert_eq!(seqs(&take(&records, NOW + HOUR, true).await), [second]);
    deliver(&records, second, 204).await;
    let third = records.accept(New { take: Take::IfFirst, ..new("3") }).await.unwrap();
    assert!(taken(third).is_some());
}

#[tokio::test]
async fn two_never_deliver_the_same_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let records = Records::open(directory.path(), 0).unwrap();
    records.open_inbox("hooks", ALICE, "{}".to_owned(), 100, NOW).await.unwrap();
    let live = taken(records.accept(New { take: Take::Now, ..new("x") }).await.unwrap()).unwrap();
    // However long it takes, and whatever the clock says.
    assert_eq!(due(&records, NOW + 999 * DAY).await, [], "the one who stored it is delivering it");
    let seq = live.seq;
    // Whoever ends without a word, by a panic say, gives it back.
    drop(live);
    // Two askers at a time: one of them gets it.
    let (one, other) = tokio::join!(take(&records, NOW, false), take(&records, NOW, false));
    assert_eq!((one.len(), other.len()), (1, 0));

    records.close().await;
    let records = Records::open(directory.path(), 0).unwrap();
    assert_eq!(due(&records, NOW).await, [seq], "a lease ends with the relay");
}

/// Its sender hangs up while it is being stored: it is not in the hands of somebody who is gone.
#[tokio::test]
async fn a_lease_that_nobody_waits_for_is_given_back() {
    let records = records().await;
    let accept = records.accept(New { take: Take::Now, ..new("x") });
    drop(futures_util::FutureExt::now_or_never(accept));
    // It is stored all the same, and given back once that is done.
    let given_back = async {
        loop {
            let due = due(&records, NOW).await;
            if !due.is_empty() {
                break due;
            }
        }
    };
    let due = tokio::time::timeout(std::time::Duration::from_secs(60), given_back).await.unwrap();
    assert_eq!((due.len(), inbox(&records).await.waiting), (1, 1));
}

#[tokio::test]
async fn a_paused_inbox_takes_in_and_gives_nothing_out() {
    let records = records().await;
    assert!(records.pause("hooks", ALICE, true).await.unwrap());
    assert!(!records.pause("other", ALICE, true).await.unwrap());
    let accepted = records.accept(New { take: Take::Now, ..new("x") }).await.unwrap();
    assert!(matches!(accepted, Accepted::Stored { due: None }), "{accepted:?}");
    assert_eq!(due(&records, NOW).await, []);
    assert_eq!(records.next_due("hooks", false).await.unwrap(), None);
    // What its owner sets anew does not let it go on.
    records.open_inbox("hooks", ALICE, "{}".to_owned(), 100, NOW).await.unwrap();
    assert!(inbox(&records).await.paused);
    records.pause("hooks", ALICE, false).await.unwrap();
    assert_eq!(due(&records, NOW).await.len(), 1);
}

#[tokio::test]
async fn a_copy_of_what_was_delivered_is_not_stored() {
    let records = records().await;
    let first = event("evt_1", "body", "head", NOW);
    let of = first.id;
    let seq = store(&records, first).await;
    deliver(&records, seq, 204).await;
    let copy = || event("evt_1", "body", "later head", NOW + HOUR);
    let copied = records.accept(copy()).await.unwrap();
    assert!(matches!(copied, Accepted::Delivered { of: found } if found == of), "{copied:?}");
    assert_eq!((inbox(&records).await.waiting, inbox(&records).await.delivered), (0, 1));
    // Nobody could judge this one, because the client is away.
    let copied = records.accept(New { verdict: None, ..copy() }).await.unwrap();
    assert!(matches!(copied, Accepted::Delivered { .. }), "{copied:?}");
    // Others make up bodies for its id.
    for n in 0..40 {
        let body = Body::inline(Bytes::from(format!("made up {n}")));
        records.accept(New { body, ..copy() }).await.unwrap();
    }
    assert!(matches!(records.accept(copy()).await.unwrap(), Accepted::Delivered { .. }));

    // Whatever is not surely the same event, well signed, and delivered, is stored.
    let others = [
        New { dedupe_since: Some(NOW + 1), ..copy() },
        New { event_id: Some("evt_2".to_owned()), ..copy() },
        New { provider: Some("github".to_owned()), ..copy() },
        New { verdict: Some(Verdict::BadSignature), ..copy() },
        New { verdict: Some(Verdict::Stale), ..copy() },
        New { dedupe_since: None, ..copy() },
    ];
    for other in others {
        let told = format!("{other:?}");
        assert!(matches!(records.accept(other).await.unwrap(), Accepted::Stored { .. }), "{told}");
    }
}

#[tokio::test]
async fn a_forged_copy_stands_for_nothing() {
    let records = records().await;
    let forged = || New { verdict: Some(Verdict::BadSignature), ..event("evt_1", "body", "forged", NOW) };
    let first = store(&records, forged()).await;
    deliver(&records, first, 200).await;
    store(&records, forged()).await;
    let real = records.accept(event("evt_1", "body", "real", NOW)).await.unwrap();
    assert!(matches!(real, Accepted::Stored { .. }), "{real:?}");
}

#[tokio::test]
async fn what_nobody_could_judge_does_not_take_the_place_of_what_is_signed_rightly() {
    let records = records().await;
    let seq = store(&records, event("evt_1", "body", "judged", NOW)).await;
    let copied = records.accept(New { verdict: None, ..event("evt_1", "body", "not judged", NOW) }).await.unwrap();
    assert!(matches!(copied, Accepted::Newer { .. }), "{copied:?}");
    let stored = records.load(seq).await.unwrap().unwrap();
    assert_eq!(
        (&*stored.row.head, stored.row.copies, stored.row.verdict.as_deref()),
        (&b"judged"[..], 1, Some("valid"))
    );
}

/// Somebody sends again what it has seen, with a signature of its own, and the client judges: one head or the other is right.
#[tokio::test]
async fn the_first_head_has_its_turn_where_the_newest_is_refused() {
    let records = records().await;
    let copy = |head, at| New { verdict: None, ..event("evt_1", "body", head, at) };
    let seq = store(&records, copy("first", NOW)).await;
    let sent = async || {
        let stored = records.load(seq).await.unwrap().unwrap();
        let (head, at) = stored.sent();
        (String::from_utf8(head.to_vec()).unwrap(), at)
    };
    let again = async |status| {
        let again = Outcome::Again { at: NOW };
        records.attempted(seq, attempt(NOW, status), again, Access::Write).await.unwrap();
    };
    again(Some(401)).await;
    assert_eq!(sent().await, ("first".to_owned(), NOW), "there is no other one");
    records.accept(copy("second", NOW + HOUR)).await.unwrap();
    assert_eq!(sent().await, ("second".to_owned(), NOW + HOUR));
    again(Some(503)).await;
    assert_eq!(sent().await.0, "second", "the app is not well, whatever is sent");
    for head in ["first", "second", "first"] {
        again(Some(401)).await;
        assert_eq!(sent().await.0, head);
    }
    records.accept(copy("third", NOW + HOUR)).await.unwrap();
    assert_eq!(sent().await.0, "third", "which is the newest");
}

/// While the first one's sender still waits for the app, a copy comes and is told that it is kept.
#[tokio::test]
async fn a_4xx_for_one_sender_does_not_end_what_another_was_told_is_kept() {
    let records = records().await;
    let answered = || Outcome::Answered(Box::new(Outcome::Again { at: NOW + 5 * SECOND }));
    let alone = taken(records.accept(New { take: Take::Now, ..event("evt_1", "a", "", NOW) }).await.unwrap()).unwrap();
    records.attempted(alone.seq, attempt(NOW, Some(404)), answered(), Access::Write).await.unwrap();
    assert_eq!(inbox(&records).await.delivered, 1, "its only sender has the answer");

    let under_way =
        taken(records.accept(New { take: Take::Now, ..event("evt_2", "b", "", NOW) }).await.unwrap()).unwrap();
    let copied = records.accept(New { take: Take::Now, ..event("evt_2", "b", "", NOW) }).await.unwrap();
    assert!(matches!(copied, Accepted::Newer { due: None, .. }), "{copied:?}");
    let seq = under_way.seq;
    records.attempted(seq, attempt(NOW, Some(404)), answered(), Access::Write).await.unwrap();
    drop(under_way);
    assert_eq!(due(&records, NOW + 5 * SECOND).await, [seq]);
    records.attempted(seq, attempt(NOW, Some(200)), answered(), Access::Write).await.unwrap();
    assert_eq!((inbox(&records).await.delivered, inbox(&records).await.waiting), (2, 0));
}

#[tokio::test]
async fn a_copy_of_what_was_refused_or_given_up_is_a_new_chance() {
    let records = records().await;
    let refused = store(&records, event("evt_1", "body", "head", NOW)).await;
    deliver(&records, refused, 404).await;
    let dead = store(&records, event("evt_1", "body", "head", NOW)).await;
    let reason = "10 attempts".to_owned();
    records.attempted(dead, attempt(NOW, Some(500)), Outcome::Dead { reason }, Access::Write).await.unwrap();
    let third = records.accept(event("evt_1", "body", "head", NOW)).await.unwrap();
    assert!(matches!(third, Accepted::Stored { .. }), "{third:?}");
}

#[tokio::test]
async fn the_newest_copy_of_what_waits_is_sent_and_the_first_head_is_kept() {
    let records = records().await;
    let first = event("evt_1", "body", "first", NOW);
    let of = first.id;
    let seq = store(&records, first).await;
    for (at, head) in [(NOW + HOUR, "the second"), (NOW + 2 * HOUR, "the third")] {
        let copy = New { take: Take::Now, ..event("evt_1", "body", head, at) };
        let copied = records.accept(copy).await.unwrap();
        assert!(matches!(&copied, Accepted::Newer { due: Some(due), of: found } if due.seq == seq && *found == of));
    }
    assert_eq!((inbox(&records).await.waiting, inbox(&records).await.bytes), (1, 4 + 5 + 9));
    let Stored { row, head_first, body, .. } = records.load(seq).await.unwrap().unwrap();
    assert_eq!((&*row.head, head_first.as_deref()), (&b"the third"[..], Some(&b"first"[..])));
    assert_eq!((row.first_at, row.received_at, row.copies), (NOW, NOW + 2 * HOUR, 2));
    assert_eq!(body, StoredBody::Inline(Bytes::from_static(b"body")));

    // While somebody delivers it, nobody else does.
    // Its tries and its age go on from where they are.
    records.attempted(seq, attempt(NOW, None), Outcome::Again { at: NOW + DAY }, Access::Write).await.unwrap();
    let copy = |head| New { take: Take::Now, ..event("evt_1", "body", head, NOW + 2 * HOUR) };
    let under_way = taken(records.accept(copy("4")).await.unwrap()).unwrap();
    assert_eq!((under_way.attempts, under_way.tries, under_way.since), (1, 1, NOW));
    let other = records.accept(copy("5")).await.unwrap();
    assert!(matches!(other, Accepted::Newer { due: None, .. }), "{other:?}");
}

#[tokio::test]
async fn another_body_under_the_same_event_is_kept_and_flagged() {
    let records = records().await;
    let first = event("evt_1", "body", "head", NOW);
    let of = first.id;
    let one = store(&records, first).await;
    let seq = store(&records, event("evt_1", "altered", "head", NOW)).await;
    assert_eq!(records.load(seq).await.unwrap().unwrap().row.differs_from, Some(of));
    assert_eq!(due(&records, NOW).await, [one, seq]);
    // Each of the two is recognised again.
    deliver(&records, seq, 200).await;
    assert!(matches!(records.accept(event("evt_1", "altered", "", NOW)).await.unwrap(), Accepted::Delivered { .. }));
    assert!(matches!(records.accept(event("evt_1", "body", "", NOW)).await.unwrap(), Accepted::Newer { .. }));
}

#[tokio::test]
async fn a_full_inbox_takes_no_more_and_says_how_much_it_may() {
    let records = records().await;
    let quotas = Quotas { inbox: Quota { count: 2, ..MUCH }, ..NO_LIMIT };
    let two = |new: New| New { quotas, ..new };
    let first = store(&records, two(new("x"))).await;
    let second = store(&records, two(new("x"))).await;
    let full = records.accept(two(new("x"))).await.unwrap_err();
    assert_eq!(full, AcceptError::Full { what: Measure::Webhooks, limit: 2 });
    assert!(full.to_string().contains("that are not delivered are 2, as much as may be"), "{full}");
    // What was given up still takes its place, what was delivered does not.
    let dead = Outcome::Dead { reason: "410".to_owned() };
    records.attempted(first, attempt(NOW, Some(410)), dead, Access::Write).await.unwrap();
    assert!(records.accept(two(new("x"))).await.is_err());
    deliver(&records, second, 200).await;
    store(&records, two(new("x"))).await;

    let quotas = Quotas { inbox: Quota { bytes: 2 * 5 + 100, ..MUCH }, ..NO_LIMIT };
    let full = Err(AcceptError::Full { what: Measure::Bytes, limit: 110 });
    assert_eq!(records.has_room("hooks", ALICE, 101, quotas).await, full);
    assert_eq!(records.has_room("hooks", ALICE, 100, quotas).await, Ok(()));
    let body = Body::inline(Bytes::from(vec![0; 97]));
    assert_eq!(records.accept(New { quotas, body, ..new("") }).await.map(drop), full);
    let body = Body::inline(Bytes::from(vec![0; 96]));
    store(&records, New { quotas, body, ..new("") }).await;
}

#[tokio::test]
async fn a_token_and_all_tokens_together_hold_so_much() {
    let records = records().await;
    records.open_inbox("other", ALICE, "{}".to_owned(), 100, NOW).await.unwrap();
    records.open_inbox("bobs", BOB, "{}".to_owned(), 100, NOW).await.unwrap();
    let quotas = Quotas { token_bytes: 20, total_bytes: 30, ..NO_LIMIT };
    let to = |inbox: &str, token| New { inbox: inbox.to_owned(), token, quotas, ..new("123456") };
    let seq = store(&records, to("hooks", ALICE)).await;
    store(&records, to("other", ALICE)).await;
    let full = |what, limit| Err(AcceptError::Full { what, limit });
    assert_eq!(records.accept(to("other", ALICE)).await.map(drop), full(Measure::TokenBytes, 20));
    store(&records, to("bobs", BOB)).await;
    assert_eq!(records.accept(to("bobs", BOB)).await.map(drop), full(Measure::TotalBytes, 30));
    // A delivered one has its head here yet.
    deliver(&records, seq, 200).await;
    assert_eq!(records.has_room("other", ALICE, 7, quotas).await, full(Measure::TokenBytes, 20));
    assert_eq!(records.has_room("other", ALICE, 6, quotas).await, Ok(()));
    // To close an inbox makes room only once that is done.
    records.close_inbox("other").await.unwrap();
    assert_eq!(records.has_room("hooks", ALICE, 7, quotas).await, full(Measure::TokenBytes, 20));
    while records.sweep_closed().await.unwrap() {}
    assert_eq!(records.has_room("hooks", ALICE, 16, quotas).await, Ok(()));
}

#[tokio::test]
async fn a_token_has_so_many_inboxes() {
    let records = records().await;
    let open = async |name: &str| records.open_inbox(name, ALICE, "{}".to_owned(), 2, NOW).await;
    open("second").await.unwrap();
    assert_eq!(open("third").await, Err(OpenInboxError::TooMany { limit: 2 }));
    open("second").await.expect("it is there");
    records.close_inbox("hooks").await.unwrap();
    open("third").await.unwrap();
}

/// Who looks for what is due while a delivery is being noted sees that, and not what was before.
#[tokio::test]
async fn what_is_due_is_looked_for_behind_what_is_being_noted() {
    let records = records().await;
    let (tell, wait) = std::sync::mpsc::channel::<()>();
    let slow = records.write(move |_| {
        wait.recv().unwrap();
        Ok(())
    });
    let looks = async {
        let due = records.due("hooks", NOW, false, 1);
        tokio::pin!(due);
        let mut is_answered = || futures_util::FutureExt::now_or_never(due.as_mut()).is_some();
        assert!(!is_answered());
        // What reads alone is answered.
        inbox(&records).await;
        assert!(!is_answered(), "it waits its turn");
        tell.send(()).unwrap();
        assert_eq!(due.await.unwrap().len(), 0);
    };
    assert_eq!(tokio::join!(slow, looks).0, Ok(()));
}

#[tokio::test]
async fn an_inbox_is_closed_as_empty_only_if_it_is() {
    let records = records().await;
    let seq = store(&records, new("x")).await;
    assert!(!records.close_empty("hooks").await.unwrap());
    deliver(&records, seq, 200).await;
    assert!(records.close_empty("hooks").await.unwrap());
    assert!(!records.close_empty("hooks").await.unwrap());
}

#[tokio::test]
async fn delivered_ones_make_way_before_they_are_too_many() {
    let records = records().await;
    let quotas = Quotas { delivered: Quota { count: 3, bytes: 14 }, ..NO_LIMIT };
    for n in 0..20 {
        let seq = store(&records, New { quotas, ..new("x") }).await;
        deliver(&records, seq, 404).await;
        assert!(inbox(&records).await.delivered <= 4, "at {n}");
    }
    let head = Bytes::from_static(b"ten bytes.");
    for _ in 0..20 {
        let seq = store(&records, New { quotas, head: head.clone(), ..new("x") }).await;
        deliver(&records, seq, 404).await;
    }
    assert_eq!(inbox(&records).await.delivered, 2, "by their bytes");
}

/// A token that has leaked is replaced.
#[tokio::test]
async fn inboxes_are_handed_over_with_all_that_is_in_them() {
    let records = records().await;
    let seq = store(&records, new("x")).await;
    records.open_inbox("other", TokenId(3), "{}".to_owned(), 100, NOW).await.unwrap();
    let moved = records.hand_over(vec![(ALICE, BOB)]).await.unwrap();
    assert_eq!(moved.iter().map(|inbox| (&*inbox.name, inbox.token)).collect::<Vec<_>>(), [("hooks", BOB)]);
    assert!(matches!(records.accept(new("old")).await, Err(AcceptError::Closed { .. })));
    store(&records, New { token: BOB, ..new("new") }).await;
    assert_eq!(due(&records, NOW).await[0], seq);
    records.open_inbox("hooks", BOB, "{}".to_owned(), 100, NOW).await.unwrap();
    assert_eq!(inbox(&records).await.waiting, 2);
    assert_eq!(records.hand_over(vec![(ALICE, BOB)]).await.unwrap(), []);
}

#[tokio::test]
async fn a_name_that_changes_hands_shows_nothing_of_its_past() {
    let records = records().await;
    let sent = new("secret");
    let id = sent.id;
    let seq = store(&records, sent).await;
    records.open_inbox("hooks", BOB, "{}".to_owned(), 100, NOW).await.unwrap();
    assert_eq!((inbox(&records).await.token, inbox(&records).await.waiting), (BOB, 0));
    assert_eq!(list(&records, None, None, 10).await, []);
    for token in [ALICE, BOB] {
        assert!(records.show("hooks", token, id).await.unwrap().is_none());
    }
    assert_eq!(records.drop("hooks", ALICE, Which::All(State::Waiting)).await.unwrap(), 0, "it is not hers any more");
    assert!(records.load(seq).await.unwrap().is_none());
    assert_eq!(due(&records, NOW).await, []);
    let closed = records.accept(new("x")).await.unwrap_err();
    assert_eq!(closed, AcceptError::Closed { name: "hooks".to_owned() });

    // It is removed bit by bit, and others are left alone.
    store(&records, New { token: BOB, ..new("his") }).await;
    while records.sweep_closed().await.unwrap() {}
    assert_eq!(inbox(&records).await.waiting, 1);
    assert!(records.close_inbox("hooks").await.unwrap());
    assert!(!records.close_inbox("hooks").await.unwrap());
    assert_eq!(records.inboxes().await.unwrap(), []);
}

#[tokio::test]
async fn attempts_are_noted_and_the_newest_twenty_kept() {
    let records = records().await;
    let sent = new("x");
    let id = sent.id;
    let seq = store(&records, sent).await;
    for n in 0..25 {
        let again = Outcome::Again { at: NOW + n };
        assert!(records.attempted(seq, attempt(NOW + n, Some(503)), again, Access::Write).await.unwrap());
    }
    // Nobody was there: no attempt.
    for _ in 0..2 {
        let found = take(&records, NOW + HOUR, false).await;
        assert_eq!((found[0].attempts, found[0].tries), (25, 25));
    }
    records.attempted(seq, attempt(NOW + 99, None), Outcome::Delivered, Access::Write).await.unwrap();
    let (stored, attempts) = records.show("hooks", ALICE, id).await.unwrap().unwrap();
    assert_eq!((stored.row.attempts, stored.row.state, stored.body), (26, State::Delivered, StoredBody::Gone));
    assert_eq!(stored.row.ended_at, Some(NOW + 99 + 12));
    let numbers: Vec<_> = attempts.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (7..=26).collect::<Vec<_>>());
    assert_eq!(attempts[19].1, attempt(NOW + 99, None));
    assert!(
        !records.attempted(Seq(99), attempt(NOW, None), Outcome::Delivered, Access::Write).await.unwrap(),
        "never was there"
    );
}

#[tokio::test]
async fn dead_letters_keep_their_reason_until_they_are_retried() {
    let records = records().await;
    let sent = new("x");
    let id = sent.id;
    let seq = store(&records, sent).await;
    let reason = "answered 410 Gone".to_owned();
    records.attempted(seq, attempt(NOW, Some(410)), Outcome::Dead { reason }, Access::Write).await.unwrap();
    assert_eq!(due(&records, NOW + DAY).await, []);
    let dead = list(&records, Some(State::Dead), None, 10).await;
    assert_eq!((dead[0].reason.as_deref(), dead[0].status), (Some("answered 410 Gone"), Some(410)));

    let ids = Which::Ids(vec![Ulid::generate(), id]);
    assert_eq!(records.retry("hooks", ALICE, ids, NOW + 30 * DAY).await.unwrap(), 1);
    let found = take(&records, NOW + 30 * DAY, false).await;
    assert_eq!((found[0].attempts, found[0].tries), (1, 0), "it may be tried as often as a new one");
    assert_eq!(found[0].since, NOW + 30 * DAY, "and for as long");
    assert_eq!(records.retry("hooks", ALICE, Which::Ids(vec![id]), NOW).await.unwrap(), 0, "it is being tried");
    drop(found);
    let retention = Retention { max_age_ms: DAY, ..KEEP };
    records.sweep("hooks", NOW + 30 * DAY, retention).await.unwrap();
    assert_eq!(inbox(&records).await.dead, 0, "its age began anew");
}

#[tokio::test]
async fn trying_again_does_not_make_younger_what_was_never_tried() {
    let records = records().await;
    let untried = store(&records, new("untried")).await;
    let tried = store(&records, new("tried")).await;
    records.attempted(tried, attempt(NOW, Some(500)), Outcome::Again { at: NOW + HOUR }, Access::Write).await.unwrap();
    assert_eq!(records.retry("hooks", ALICE, Which::All(State::Waiting), NOW + 1).await.unwrap(), 2);
    let found = take(&records, NOW + 1, false).await;
    let mut ages: Vec<_> = found.iter().map(|due| (due.seq, due.since)).collect();
    ages.sort_unstable();
    assert_eq!(ages, [(untried, NOW), (tried, NOW + 1)]);
}

const KEEP: Retention =
    Retention { delivered_ms: 999 * DAY, delivered: MUCH, dead_ms: 999 * DAY, max_age_ms: 999 * DAY };

#[tokio::test]
async fn what_ended_late_counts_and_what_is_too_old_goes() {
    let records = records().await;
    let old = store(&records, new("old")).await;
    let being_tried = taken(records.accept(New { take: Take::Now, ..new("being tried") }).await.unwrap()).unwrap();
    let tried = being_tried.seq;
    let young = store(&records, New { received_at: NOW + DAY, since: NOW + DAY, ..new("young") }).await;
    let retention = Retention { max_age_ms: DAY, ..KEEP };
    assert_eq!(records.sweep("hooks", NOW + DAY + 1, retention).await.unwrap(), Swept { more: false, expired: 1 });
    let dead = list(&records, Some(State::Dead), None, 10).await;
    assert_eq!((dead[0].seq, dead[0].reason.as_deref()), (old, Some("expired")));
    // It was under way all the same, and came through.
    deliver(&records, old, 200).await;
    assert_eq!((inbox(&records).await.dead, inbox(&records).await.delivered), (0, 1));
    assert_eq!(due(&records, NOW + DAY).await, [young]);
    deliver(&records, young, 200).await;
    deliver(&records, tried, 200).await;

    let two = Retention { delivered: Quota { count: 2, ..MUCH }, ..KEEP };
    assert!(!records.sweep("hooks", NOW, two).await.unwrap().more);
    let left = list(&records, None, None, 10).await;
    assert_eq!(left.iter().map(|row| row.seq).collect::<Vec<_>>(), [young, tried]);
    records.sweep("hooks", NOW + 13, Retention { delivered_ms: 0, ..KEEP }).await.unwrap();
    assert_eq!(inbox(&records).await.delivered, 0);
    assert!(!records.sweep("gone", NOW, KEEP).await.unwrap().more);
    let dead = store(&records, new("x")).await;
    let reason = String::new();
    records.attempted(dead, attempt(NOW, None), Outcome::Dead { reason }, Access::Write).await.unwrap();
    records.sweep("hooks", NOW + 13, Retention { dead_ms: 0, ..KEEP }).await.unwrap();
    assert_eq!((inbox(&records).await.bytes, inbox(&records).await.oldest_at), (0, None));
}

#[tokio::test]
async fn lists_are_paged_and_thousands_are_dealt_with_in_steps() {
    let records = records().await;
    let accepted = join_all((0..2500).map(|_| store(&records, new("x")))).await;
    let mut seen = BTreeSet::new();
    let (mut before, mut more) = (None, true);
    while more {
        let page;
        (page, more) = records.list("hooks", ALICE, None, before, 9999).await.unwrap();
        assert!(page.len() <= STEP && page.is_sorted_by(|one, other| one.seq > other.seq));
        before = page.last().map(|last| last.seq);
        seen.extend(page.iter().map(|row| row.seq));
    }
    assert_eq!(seen, accepted.into_iter().collect());
    assert!(records.sweep("hooks", NOW + 1, Retention { max_age_ms: 0, ..KEEP }).await.unwrap().more);
    assert_eq!((inbox(&records).await.waiting, inbox(&records).await.dead), (1500, 1000));
    assert_eq!(records.retry("hooks", ALICE, Which::All(State::Dead), NOW).await.unwrap(), 1000);
    assert_eq!(records.retry("hooks", ALICE, Which::All(State::Waiting), NOW).await.unwrap(), 2500);
    assert_eq!(records.drop("hooks", ALICE, Which::All(State::Dead)).await.unwrap(), 0);
    assert_eq!(records.drop("hooks", ALICE, Which::All(State::Waiting)).await.unwrap(), 2500);
    let Inbox { waiting, delivered, dead, bytes, .. } = inbox(&records).await;
    assert_eq!((waiting, delivered, dead, bytes), (0, 0, 0, 0));
    assert_eq!(records.drop("nobody's", ALICE, Which::All(State::Waiting)).await.unwrap(), 0);
}

/// A thousand bodies of 256 KiB are 64,000 pages to be given back: nobody waits until that is done.
#[tokio::test]
async fn long_bodies_are_dealt_with_in_small_steps() {
    let records = records().await;
    for _ in 0..40 {
        let body = Body::inline(Bytes::from(vec![0; MAX_INLINE]));
        store(&records, New { body, ..new("") }).await;
    }
    let expire = Retention { max_age_ms: 0, ..KEEP };
    assert!(records.sweep("hooks", NOW + 1, expire).await.unwrap().more);
    assert_eq!(inbox(&records).await.dead, 16, "of 4 MiB");
    while records.sweep("hooks", NOW + 1, expire).await.unwrap().more {}
    assert_eq!(records.drop("hooks", ALICE, Which::All(State::Dead)).await.unwrap(), 40);
}

#[tokio::test]
async fn a_page_of_long_heads_is_short() {
    let records = records().await;
    let head = Bytes::from(vec![b'h'; 1024 * 1024]);
    for _ in 0..8 {
        store(&records, New { head: head.clone(), ..new("x") }).await;
    }
    assert_eq!(list(&records, None, None, 100).await.len(), 5);
}

// ---- long bodies ------------------------------------------------------------------------------------

async fn spooled(records: &Records, new: New, pieces: usize) -> New {
    let mut incoming = records.spool().receive(new.id);
    for piece in 0..pieces {
        incoming.push(&vec![piece as u8; 100 * 1024]).await.unwrap();
    }
    let size = incoming.size();
    let body = incoming.finish().await.unwrap();
    assert_eq!(body.size(), size);
    New { body, ..new }
}

fn files(directory: &Path) -> usize {
    std::fs::read_dir(directory.join("inbox")).unwrap().count()
}

#[tokio::test]
async fn a_long_body_is_a_file_that_goes_with_its_delivery() {
    let directory = tempfile::tempdir().unwrap();
    let records = Records::open(directory.path(), 0).unwrap();
    records.open_inbox("hooks", ALICE, "{}".to_owned(), 100, NOW).await.unwrap();
    let short = spooled(&records, new(""), 2).await;
    assert!(matches!(&short.body, Body::Inline { bytes, .. } if bytes.len() <= MAX_INLINE));
    let long = spooled(&records, new(""), 3).await;
    let id = long.id;
    let whole: Vec<u8> = (0..3).flat_map(|piece| vec![piece; 100 * 1024]).collect();
    assert_eq!(long.body.sha256(), Body::inline(whole.clone().into()).sha256());
    let seq = store(&records, long).await;
    drop(records);

    let records = Records::open(directory.path(), 0).unwrap();
    assert_eq!(records.load(seq).await.unwrap().unwrap().body, StoredBody::Spooled);
    let mut read = Vec::new();
    records.spool().open(id).await.unwrap().read_to_end(&mut read).await.unwrap();
    assert!(read == whole);
    deliver(&records, seq, 200).await;
    assert_eq!(files(directory.path()), 0);
    assert!(records.load(seq).await.unwrap().is_none(), "nobody sends it again");
}

#[tokio::test]
async fn a_long_body_of_no_use_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let records = Records::open(directory.path(), 0).unwrap();
    records.open_inbox("hooks", ALICE, "{}".to_owned(), 100, NOW).await.unwrap();
    // The sender hung up, before the end and after it.
    let mut incoming = records.spool().receive(Ulid::generate());
    incoming.push(&vec![0; 300 * 1024]).await.unwrap();
    assert_eq!(files(directory.path()), 1);
    drop(incoming);
    drop(spooled(&records, new(""), 3).await);
    assert_eq!(files(directory.path()), 0);
    // The inbox is full, or somebody else's.
    let quotas = Quotas { inbox: Quota { count: 0, ..MUCH }, ..NO_LIMIT };
    records.accept(spooled(&records, New { quotas, ..new("") }, 3).await).await.unwrap_err();
    records.accept(spooled(&records, New { token: BOB, ..new("") }, 3).await).await.unwrap_err();
    assert_eq!(files(directory.path()), 0);
    // It is a copy: of one that waits, of one that was delivered.
    let seq = store(&records, spooled(&records, event("evt_1", "", "", NOW), 3).await).await;
    let copy = records.accept(spooled(&records, event("evt_1", "", "", NOW), 3).await).await.unwrap();
    assert!(matches!(copy, Accepted::Newer { .. }), "{copy:?}");
    assert_eq!(files(directory.path()), 1);
    deliver(&records, seq, 200).await;
    let copy = records.accept(spooled(&records, event("evt_1", "", "", NOW), 3).await).await.unwrap();
    assert!(matches!(copy, Accepted::Delivered { .. }), "{copy:?}");
    assert_eq!(files(directory.path()), 0);
    // It is dropped, by hand or with its inbox.
    let long = spooled(&records, new(""), 3).await;
    let id = long.id;
    store(&records, long).await;
    assert_eq!(records.drop("hooks", ALICE, Which::Ids(vec![id])).await.unwrap(), 1);
    assert_eq!(files(directory.path()), 0);
    store(&records, spooled(&records, new(""), 3).await).await;
    records.close_inbox("hooks").await.unwrap();
    records.sweep_closed().await.unwrap();
    assert_eq!(files(directory.path()), 0);
}

/// The relay is killed between the file and the row: the file goes at the next start. It never is the other way round.
#[tokio::test]
async fn what_a_crash_leaves_of_a_long_body_goes_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let records = Records::open(directory.path(), 0).unwrap();
    records.open_inbox("hooks", ALICE, "{}".to_owned(), 100, NOW).await.unwrap();
    let kept = store(&records, spooled(&records, new(""), 3).await).await;
    // What a killed process does not do is run destructors.
    std::mem::forget(spooled(&records, new(""), 3).await);
    let mut half = records.spool().receive(Ulid::generate());
    half.push(&vec![0; 300 * 1024]).await.unwrap();
    std::mem::forget(half);
    std::fs::write(directory.path().join("inbox/README"), "not ours").unwrap();
    assert_eq!(files(directory.path()), 4);
    records.close().await;
    let records = Records::open(directory.path(), 0).unwrap();
    assert_eq!(files(directory.path()), 2);
    assert_eq!(records.load(kept).await.unwrap().unwrap().body, StoredBody::Spooled);
}

#[tokio::test]
async fn a_copy_has_what_waits_with_its_long_bodies_and_not_what_was_delivered_meanwhile() {
    let (directory, copied) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let records = Records::open(directory.path(), 0).unwrap();
    records.open_inbox("hooks", ALICE, "{}".to_owned(), 100, NOW).await.unwrap();
    let short = store(&records, new("short")).await;
    let [kept, gone] = [spooled(&records, new(""), 3).await, spooled(&records, new(""), 4).await];
    let (id, file) = (kept.id, directory.path().join("inbox").join(gone.id.to_string()));
    let (kept, gone) = (store(&records, kept).await, store(&records, gone).await);
    // As where it is delivered once the database has been copied.
    std::fs::remove_file(file).unwrap();
    let of = copy(directory.path(), copied.path()).unwrap();
    assert_eq!(of, Copied { inboxes: 1, waiting: 2, dead: 0 });
    // The records have not noticed.
    assert_eq!(due(&records, NOW).await, [short, kept, gone]);

    let records = Records::open(copied.path(), 0).unwrap();
    assert_eq!((inbox(&records).await.waiting, files(copied.path())), (2, 1));
    assert_eq!(due(&records, NOW).await, [short, kept]);
    let mut read = Vec::new();
    records.spool().open(id).await.unwrap().read_to_end(&mut read).await.unwrap();
    assert_eq!(read.len(), 300 * 1024);
    // What comes next stands behind all that there ever was.
    assert!(store(&records, new("next")).await > gone);
}

// ---- trouble ----------------------------------------------------------------------------------------

#[tokio::test]
async fn a_full_disk_refuses_and_passes() {
    let records = records().await;
    let pages = |sql: &'static str| records.write(move |db| db.query_row(sql, [], |row| row.get::<_, i64>(0)));
    let used = pages("PRAGMA page_count").await.unwrap();
    pages(Box::leak(format!("PRAGMA max_page_count = {}", used + 8).into_boxed_str())).await.unwrap();
    let long = || New { body: Body::inline(Bytes::from(vec![0; 100_000])), ..new("") };
    assert_eq!(records.accept(long()).await.unwrap_err(), AcceptError::Store(StoreError::Full));
    assert_eq!((inbox(&records).await.waiting, records.health()), (0, Ok(())));
    let spooled = spooled(&records, new(""), 3).await;
    pages("PRAGMA max_page_count = 100000").await.unwrap();
    store(&records, long()).await;
    store(&records, spooled).await;
}

#[tokio::test]
async fn what_stays_free_of_the_disk_is_not_for_webhooks() {
    let directory = tempfile::tempdir().unwrap();
    let records = Records::open(directory.path(), 0).unwrap();
    records.open_inbox("hooks", ALICE, "{}".to_owned(), 100, NOW).await.unwrap();
    let seq = store(&records, new("x")).await;
    drop(records);
    // No disk has so much.
    let records = Records::open(directory.path(), 1 << 60).unwrap();
    assert_eq!(records.health(), Err(StoreError::Full));
    assert_eq!(records.accept(new("x")).await.map(drop), Err(AcceptError::Store(StoreError::Full)));
    assert_eq!(records.has_room("hooks", ALICE, 1, NO_LIMIT).await, Err(AcceptError::Store(StoreError::Full)));
    let mut long = records.spool().receive(Ulid::generate());
    let error = long.push(&vec![0; MAX_INLINE + 1]).await.unwrap_err();
    assert_eq!((error.kind(), files(directory.path())), (std::io::ErrorKind::StorageFull, 0));
    // What is there is delivered all the same.
    assert_eq!(due(&records, NOW).await, [seq]);
    deliver(&records, seq, 200).await;
}

#[tokio::test]
async fn what_was_kept_back_is_given_up_on_a_full_disk_and_laid_by_again() {
    let directory = tempfile::tempdir().unwrap();
    let records = Records::open(directory.path(), 0).unwrap();
    records.open_inbox("hooks", ALICE, "{}".to_owned(), 100, NOW).await.unwrap();
    let seq = store(&records, new("x")).await;
    let is_there = || directory.path().join("inbox.reserve").exists();
    assert!(is_there());
    let pages = |sql: &'static str| records.write(move |db| db.query_row(sql, [], |row| row.get::<_, i64>(0)));
    pages("PRAGMA max_page_count = 1").await.unwrap();
    // More than there are pages for.
    let error = "e".repeat(200_000);
    let attempt = Attempt { error: Some(error), ..attempt(NOW, None) };
    let again = Outcome::Again { at: NOW };
    assert_eq!(records.attempted(seq, attempt.clone(), again.clone(), Access::Write).await, Err(StoreError::Full));
    assert!(!is_there(), "it was tried again without");
    pages("PRAGMA max_page_count = 100000").await.unwrap();
    assert!(records.attempted(seq, attempt, again, Access::Write).await.unwrap());
    records.sweep_closed().await.unwrap();
    assert!(is_there());
}

#[test]
fn a_newer_or_broken_database_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(Records::open(directory.path(), 0).unwrap());
    let raw = Connection::open(directory.path().join(DATABASE_FILE)).unwrap();
    raw.execute_batch("PRAGMA user_version = 77").unwrap();
    let error = Records::open(directory.path(), 0).unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 77, .. }), "{error}");
}

/// However many webhooks wait, what is asked all the time goes by an index, to rows that it needs, in their order.
#[tokio::test]
async fn no_statement_walks_over_all_that_waits() {
    let plan = |sql: &str| {
        let sql = format!("EXPLAIN QUERY PLAN {sql}");
        let records = Records::temporary().unwrap();
        async move {
            let steps = records.read(move |db| {
                let mut statement = db.prepare(&sql)?;
                let steps: Vec<String> =
                    statement.raw_query().mapped(|row| row.get("detail")).collect::<Result<_, _>>()?;
                Ok(steps)
            });
            steps.await.unwrap().join("; ")
        }
    };
    for (sql, index) in [
        (deliver::FIRST_WAITING, "webhooks_state (inbox=? AND state=?)"),
        (deliver::NEXT_DUE, "webhooks_due (inbox=?)"),
        (deliver::DUE_AGAIN, "webhooks_due (inbox=? AND due_at>? AND due_at<?)"),
        (deliver::DUE_AT_ONCE, "webhooks_due (inbox=? AND due_at=?)"),
        (accept::COPIES_OF, "webhooks_event (inbox=? AND event_id=? AND body_sha256=?)"),
        (accept::OTHERS_OF, "webhooks_event (inbox=? AND event_id=?)"),
        (accept::INTO, "inboxes_of_token (token_id=?)"),
        (sweep::CLOSED, "webhooks_state (inbox=?)"),
        (handle::PAGE, "webhooks_state (inbox=? AND state=? AND rowid<?)"),
        (handle::NEXT, "webhooks_state (inbox=? AND state=? AND rowid>? AND rowid<?)"),
        (handle::LAST, "webhooks_state (inbox=? AND state=?)"),
        (sweep::ENDED, "webhooks_ended (inbox=? AND state=? AND ended_at<?)"),
        (sweep::TOO_OLD, "webhooks_age (inbox=? AND since<?)"),
        (INBOX, "webhooks_state (inbox=? AND state=?)"),
    ] {
        let plan = plan(sql).await;
        assert!(plan.contains(index), "{sql}\n{plan}");
        assert!(!plan.contains("SCAN webhooks") && !plan.contains("TEMP B-TREE"), "{sql}\n{plan}");
    }
}

// ---- counters ---------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Step {
    Accept { event: u8, body: u8, take: bool },
    Due { ordered: bool },
    Attempt { webhook: usize, status: u16 },
    GiveBack,
    Retry { webhook: usize },
    RetryAll,
    Drop { webhook: usize },
    DropAll { state: usize },
    Sweep,
    Reopen { token: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..4u8, 0..3u8, any::<bool>()).prop_map(|(event, body, take)| Step::Accept { event, body, take }),
        2 => any::<bool>().prop_map(|ordered| Step::Due { ordered }),
        6 => (0..30usize, prop::sample::select(vec![200, 404, 410, 500])).prop_map(|(webhook, status)| Step::Attempt { webhook, status }),
        1 => Just(Step::GiveBack),
        1 => (0..30usize).prop_map(|webhook| Step::Retry { webhook }),
        1 => Just(Step::RetryAll),
        1 => (0..30usize).prop_map(|webhook| Step::Drop { webhook }),
        1 => (0..3usize).prop_map(|state| Step::DropAll { state }),
        1 => Just(Step::Sweep),
        1 => (1..3i64).prop_map(|token| Step::Reopen { token }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens in whatever order: the counters are what a count would give, each webhook that is not delivered
    /// has its body and no other has, and none is in two states.
    #[test]
    fn the_counters_are_what_a_count_would_give(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let records = records().await;
            let mut owner = ALICE;
            let mut now = NOW;
            let mut known: Vec<(Seq, Ulid)> = Vec::new();
            let mut under_way = Vec::new();
            for step in steps {
                now += SECOND;
                let pick = |webhook: usize| known.get(webhook % known.len().max(1)).copied();
                match step {
                    Step::Accept { event: id, body, take } => {
                        let body = ["", "one", "another"][usize::from(body)];
                        let take = if take { Take::Now } else { Take::No };
                        let sent = New { token: owner, take, ..event(&format!("evt_{id}"), body, "head", now) };
                        let id = sent.id;
                        under_way.extend(taken(records.accept(sent).await.unwrap()));
                        if let Some((stored, _)) = records.show("hooks", owner, id).await.unwrap() {
                            known.push((stored.row.seq, id));
                        }
                    }
                    Step::Due { ordered } => under_way.extend(records.due("hooks", now, ordered, 3).await.unwrap()),
                    Step::Attempt { webhook, status } => {
                        let Some((seq, _)) = pick(webhook) else { continue };
                        let outcome = match status {
                            200 | 404 => Outcome::Delivered,
                            410 => Outcome::Dead { reason: "gone".to_owned() },
                            _ => Outcome::Again { at: now + 3 * SECOND },
                        };
                        records.attempted(seq, attempt(now, Some(status)), outcome, Access::Write).await.unwrap();
                    }
                    Step::GiveBack => under_way.clear(),
                    Step::Retry { webhook } => {
                        let Some((_, id)) = pick(webhook) else { continue };
                        records.retry("hooks", owner, Which::Ids(vec![id]), now).await.unwrap();
                    }
                    Step::RetryAll => {
                        records.retry("hooks", owner, Which::All(State::Dead), now).await.unwrap();
                    }
                    Step::Drop { webhook } => {
                        let Some((_, id)) = pick(webhook) else { continue };
                        records.drop("hooks", owner, Which::Ids(vec![id])).await.unwrap();
                    }
                    Step::DropAll { state } => {
                        records.drop("hooks", owner, Which::All(State::ALL[state])).await.unwrap();
                    }
                    Step::Sweep => {
                        let age = 20 * SECOND;
                        let retention = Retention { delivered_ms: age, delivered: Quota { count: 2, ..MUCH }, dead_ms: age, max_age_ms: age };
                        records.sweep("hooks", now, retention).await.unwrap();
                        records.sweep_closed().await.unwrap();
                    }
                    Step::Reopen { token } => {
                        owner = TokenId(token);
                        records.open_inbox("hooks", owner, "{}".to_owned(), 100, now).await.unwrap();
                    }
                }
                check(&records).await;
            }
        });
    }
}

async fn check(records: &Records) {
    let wrong = records.read(|db| {
        let sql = "SELECT count(*) FROM inboxes WHERE
                       waiting <> (SELECT count(*) FROM webhooks WHERE inbox = inboxes.id AND state = 0)
                    OR delivered <> (SELECT count(*) FROM webhooks WHERE inbox = inboxes.id AND state = 1)
                    OR dead <> (SELECT count(*) FROM webhooks WHERE inbox = inboxes.id AND state = 2)
                    OR bytes <> (SELECT coalesce(sum(body_size + length(head) + length(trailers) + coalesce(length(head_first), 0)), 0)
                                 FROM webhooks WHERE inbox = inboxes.id AND state <> 1)
                    OR delivered_bytes <> (SELECT coalesce(sum(length(head) + length(trailers) + coalesce(length(head_first), 0)), 0)
                                           FROM webhooks WHERE inbox = inboxes.id AND state = 1)
                    OR (SELECT bytes FROM total) <> (SELECT sum(bytes + delivered_bytes) FROM inboxes)";
        let counters: i64 = db.query_row(sql, [], |row| row.get(0))?;
        let sql = "SELECT count(*) FROM webhooks
                   WHERE (state <> 1) <> EXISTS (SELECT 1 FROM bodies WHERE bodies.seq = webhooks.seq)";
        let bodies: i64 = db.query_row(sql, [], |row| row.get(0))?;
        let sql = "SELECT (SELECT count(*) FROM bodies WHERE seq NOT IN (SELECT seq FROM webhooks))
                        + (SELECT count(*) FROM attempts WHERE seq NOT IN (SELECT seq FROM webhooks))
                        + (SELECT count(*) FROM webhooks WHERE (ended_at IS NULL) <> (state = 0))";
        let orphans: i64 = db.query_row(sql, [], |row| row.get(0))?;
        Ok((counters, bodies, orphans))
    });
    assert_eq!(wrong.await.unwrap(), (0, 0, 0));
}
