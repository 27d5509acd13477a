//! Webhooks that are on disk before they are acknowledged, beside what the disk itself does.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Result;
use crate::load::{Conn, Storm, cpu_of, percentile, sequence, storm};
use crate::table::Table;
use crate::world::{Front, World, hooks_taken};

/// Senders at once, and so the most webhooks that one fsync can cover.
const SENDERS: u32 = 64;
/// A frame of SQLite's write-ahead log: a page and its header.
const FRAME: usize = 4096 + 24;
/// Frames of a commit with one webhook: the row, its body, and a page of each index.
const ALONE: usize = 8;
/// Frames of a commit with 64 of them: two each, and the pages that they share.
const GROUP: usize = 144;
/// How long the write-ahead log becomes before it is written from its beginning again.
const LOG: u64 = 4 << 20;

/// For how long deliveries of a backlog are counted.
const DRAINED: Duration = Duration::from_secs(5);

/// An inbox that takes what the bench sends, and gives it back as fast as it can.
const LIMITS: &str = "[limits]\ninbox_count = 100000000\ninbox_bytes = 1000000000000\n\
                      inbox_token_bytes = 1000000000000\ninbox_total_bytes = 1000000000000\n";
const INBOX: &[&str] = &["--inbox=rate=60000,concurrency=64"];

/// What the disk does with writes that are synced one by one.
struct Disk {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

/// Writes so many frames and syncs them, over and over, in a file as long as the log.
fn disk(directory: &Path, frames: usize) -> Result<Disk> {
    let path = directory.join("fsync");
    let file = OpenOptions::new().create(true).truncate(true).write(true).open(&path)?;
    file.write_all_at(&vec![1; usize::try_from(LOG)?], 0)?;
    file.sync_all()?;
    let block = vec![2; FRAME * frames];
    let (begun, mut at, mut times) = (Instant::now(), 0, Vec::new());
    while begun.elapsed() < Duration::from_secs(2) {
        let one = Instant::now();
        file.write_all_at(&block, at)?;
        // As SQLite does.
        file.sync_all()?;
        times.push(one.elapsed().as_secs_f64() * 1e3);
        at += block.len() as u64;
        if at + block.len() as u64 > LOG {
            at = 0;
        }
    }
    let per_second = times.len() as f64 / begun.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    std::fs::remove_file(path)?;
    Ok(Disk { per_second, p50_ms: percentile(&times, 0.5), p99_ms: percentile(&times, 0.99) })
}

/// All of it, in one run on one disk.
pub(crate) fn inbox(world: &World, table: &mut Table) -> Result<()> {
    let alone = disk(world.dir.path(), ALONE)?;
    let group = disk(world.dir.path(), GROUP)?;
    table.alone("inbox.disk", alone.per_second);
    table.alone("inbox.disk.p50", alone.p50_ms);
    table.alone("inbox.disk.p99", alone.p99_ms);
    table.alone("inbox.groups", group.per_second);
    table.alone("inbox.groups.p99", group.p99_ms);

    let relay = world.relay_with(LIMITS)?;
    let live = {
        let (front, client) = world.client_with(&relay, relay.addr, "live", &[])?;
        front.wait("the live tunnel", &client)?;
        warm(world, &front)?.per_second
    };
    let (there, one) = {
        let (front, client) = world.client_with(&relay, relay.addr, "hooks", INBOX)?;
        front.wait("the tunnel with an inbox", &client)?;
        let one = sequence(&front, Duration::from_secs(2))?;
        (warm(world, &front)?, one)
    };
    let front = relay.front(world, "hooks");
    let begun = Instant::now();
    // Until the relay knows that the client has gone, and keeps what comes.
    while Conn::open(&front)?.hook()? != 202 {
        relay.process.check("a relay whose client has gone", begun)?;
    }
    let before = relay.process.resident();
    let (away, cpu) = cpu_of(&[&relay.process], || warm(world, &front))?;
    // What the disk can do, where all that wait share an fsync.
    let must = (live / 2.0).min(0.6 * group.per_second * f64::from(SENDERS));
    table.alone("inbox.live", live);
    table.beside("inbox.away", must, away.per_second);
    table.beside("inbox.there", must, there.per_second);
    table.beside("inbox.p99", group.p99_ms, away.p99_ms);
    table.alone("inbox.p50", away.p50_ms);
    table.beside("inbox.one", alone.p99_ms, percentile(&one, 0.99));
    table.alone("inbox.one.p50", percentile(&one, 0.5));
    table.alone("inbox.cpu", cpu.iter().sum::<f64>() * 1e4 / away.requests);

    let mut waiting = away.requests;
    while waiting < world.waiting as f64 {
        waiting += storm(world, &front, SENDERS, 5, false)?.requests;
    }
    table.alone("inbox.waiting", waiting);
    table.alone("inbox.memory", (relay.process.resident() - before) / 1024.0 / 1024.0);

    let begun = Instant::now();
    let relay = relay.crash(world)?;
    // From the program's start to the first one that it has kept.
    while !Conn::open(&front).and_then(|mut conn| conn.hook()).is_ok_and(|status| status == 202) {
        relay.process.check("a relay with a backlog", begun)?;
    }
    table.alone("inbox.start", begun.elapsed().as_secs_f64());
    table.alone("inbox.started", relay.process.resident() / 1024.0 / 1024.0);

    let (begun, taken) = (Instant::now(), hooks_taken());
    let (_front, _client) = world.client_with(&relay, relay.addr, "hooks", INBOX)?;
    while hooks_taken() < taken + 100 {
        relay.process.check("the delivery of a backlog", begun)?;
    }
    let (begun, taken) = (Instant::now(), hooks_taken());
    std::thread::sleep(DRAINED);
    table.alone("inbox.drain", (hooks_taken() - taken) as f64 / begun.elapsed().as_secs_f64());
    table.alone("inbox.draining", relay.process.resident() / 1024.0 / 1024.0);
    Ok(())
}

/// A second of it first.
fn warm(world: &World, front: &Front) -> Result<Storm> {
    storm(world, front, SENDERS, 1, false)?;
    storm(world, front, SENDERS, 4, false)
}
