//! The measurements. Each starts what it measures anew, so that none inherits another's memory.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::Result;
use crate::inbox::inbox;
use crate::load::{
    Background, Conn, DelayedWire, Herd, IdleSessions, OpenStreams, Storm, cpu_of, percentile, sequence, storm,
};
use crate::table::{Table, median};
use crate::world::{Front, Process, World};

/// A measurement that can be chosen by name.
pub(crate) struct Measure {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn(&World, &mut Table) -> Result<()>,
}

/// All of them, in the order in which they run.
pub(crate) const MEASURES: &[Measure] = &[
    Measure { name: "cpu", about: "webhooks over 64 kept connections: CPU, requests per second", run: cpu },
    Measure { name: "seq", about: "webhooks one after another on one connection: p50", run: seq },
    Measure { name: "conn", about: "a TLS connection per webhook: CPU", run: conn },
    Measure { name: "bulk", about: "one download and one upload of 256 MiB: speed, memory", run: bulk },
    Measure { name: "streams", about: "1,000 open streams: memory", run: streams },
    Measure { name: "beside", about: "webhooks beside a fast and beside a slow download: p99", run: beside },
    Measure { name: "far", about: "a tunnel leg of 50 ms: round trips, speed", run: far },
    Measure { name: "idle", about: "thousands of idle sessions: memory, descriptors, CPU", run: idle },
    Measure {
        name: "herd",
        about: "thousands of clients that come back after a crash of the relay: seconds",
        run: herd,
    },
    Measure { name: "inbox", about: "webhooks on disk before they are acknowledged, and a backlog", run: inbox },
    Measure { name: "start", about: "from the client's start to the first answer", run: start },
];

const MIB: u64 = 1024 * 1024;

/// One large body, in bytes.
const BULK: u64 = 256 * MIB;

/// What a storm cost: all of it, and the parts of the relay and the client in turn.
type Cost = (Storm, Vec<f64>);

fn cpu(world: &World, table: &mut Table) -> Result<()> {
    let (nginx, ours) = storms(world, 64, false)?;
    table.beside("cpu", per_10k(&nginx, &nginx.1), per_10k(&ours, &ours.1));
    table.alone("cpu.relay", per_10k(&ours, &ours.1[..1]));
    table.alone("cpu.client", per_10k(&ours, &ours.1[1..]));
    table.beside("rps", nginx.0.per_second, ours.0.per_second);
    table.beside("rps.p99", nginx.0.p99_ms, ours.0.p99_ms);
    Ok(())
}

fn conn(world: &World, table: &mut Table) -> Result<()> {
    let (nginx, ours) = storms(world, 16, true)?;
    table.beside("conn", per_10k(&nginx, &nginx.1), per_10k(&ours, &ours.1));
    table.beside("conn.rps", nginx.0.per_second, ours.0.per_second);
    Ok(())
}

fn storms(world: &World, connections: u32, close: bool) -> Result<(Cost, Cost)> {
    let (nginx, tunnel) = (world.nginx()?, world.tunnel()?);
    let one = |front: &Front, processes: &[&Process]| {
        storm(world, front, connections, 1, close)?;
        cpu_of(processes, || storm(world, front, connections, 4, close))
    };
    world.both(|| one(&nginx.front, &[&nginx.process]), || one(&tunnel.front, &[&tunnel.relay.process, &tunnel.client]))
}

fn per_10k(cost: &Cost, seconds: &[f64]) -> f64 {
    seconds.iter().sum::<f64>() * 1e4 / cost.0.requests
}

fn seq(world: &World, table: &mut Table) -> Result<()> {
    let (nginx, tunnel) = (world.nginx()?, world.tunnel()?);
    let one = |front: &Front, processes: &[&Process]| {
        sequence(front, Duration::from_millis(300))?;
        cpu_of(processes, || sequence(front, Duration::from_secs(2)))
    };
    let (nginx, ours) = world.both(
        || one(&nginx.front, &[&nginx.process]),
        || one(&tunnel.front, &[&tunnel.relay.process, &tunnel.client]),
    )?;
    table.beside("seq", percentile(&nginx.0, 0.5) * 1e3, percentile(&ours.0, 0.5) * 1e3);
    let cpu = |(times, seconds): (Vec<f64>, Vec<f64>)| seconds.iter().sum::<f64>() * 1e4 / times.len() as f64;
    table.beside("seq.cpu", cpu(nginx), cpu(ours));
    Ok(())
}

fn bulk(world: &World, table: &mut Table) -> Result<()> {
    let (nginx, tunnel) = (world.nginx()?, world.tunnel()?);
    let (relay, client) = (&tunnel.relay.process, &tunnel.client);
    [relay, client].iter().for_each(|process| process.reset_peak());
    for (speed, cost, run) in [("down", "down.cpu", down as fn(&Front, u64) -> Result<f64>), ("up", "up.cpu", up)] {
        let (nginx, ours) = world.both(
            || cpu_of(&[&nginx.process], || run(&nginx.front, BULK)),
            || cpu_of(&[relay, client], || run(&tunnel.front, BULK)),
        )?;
        table.beside(speed, nginx.0, ours.0);
        let per_gib = |seconds: Vec<f64>| seconds.iter().sum::<f64>() * (1024 * MIB) as f64 / BULK as f64;
        table.beside(cost, per_gib(nginx.1), per_gib(ours.1));
    }
    table.alone("bulk.relay", mib(relay.peak()));
    table.alone("bulk.client", mib(client.peak()));
    Ok(())
}

/// MB/s of a download on a connection that is already there.
fn down(front: &Front, bytes: u64) -> Result<f64> {
    let mut conn = Conn::open(front)?;
    conn.get("/")?;
    let begun = Instant::now();
    conn.download(bytes, None, &AtomicBool::new(false))?;
    Ok(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

/// MB/s of an upload on a connection that is already there.
fn up(front: &Front, bytes: u64) -> Result<f64> {
    let mut conn = Conn::open(front)?;
    conn.get("/")?;
    let begun = Instant::now();
    conn.upload(bytes)?;
    Ok(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

fn streams(world: &World, table: &mut Table) -> Result<()> {
    {
        let tunnel = world.tunnel()?;
        let _open = OpenStreams::start(&tunnel.front, 1_000)?;
        std::thread::sleep(Duration::from_millis(300));
        table.alone("h2.relay", mib(tunnel.relay.process.resident()));
        table.alone("h2.client", mib(tunnel.client.resident()));
    }
    let tunnel = world.tunnel()?;
    let mut open = Vec::new();
    for i in 0..1_000 {
        let mut conn = Conn::open(&tunnel.front)?;
        let status = conn.start("/hold")?;
        if status != 200 {
            return Err(format!("stream {i} was answered with {status}").into());
        }
        open.push(conn);
    }
    std::thread::sleep(Duration::from_millis(300));
    table.alone("h1.relay", mib(tunnel.relay.process.resident()));
    table.alone("h1.client", mib(tunnel.client.resident()));
    Ok(())
}

fn beside(world: &World, table: &mut Table) -> Result<()> {
    let (nginx, tunnel) = (world.nginx()?, world.tunnel()?);
    for (row, pace) in [("fast", None), ("slow", Some(1e6))] {
        let one = |front: &Front| {
            let download = Background::start(front, pace)?;
            // A connection stays with the worker that took it, which may be the download's or not: take several.
            let mut times = Vec::new();
            for _ in 0..6 {
                times.extend(sequence(front, Duration::from_millis(500))?);
            }
            times.sort_by(f64::total_cmp);
            Ok((percentile(&times, 0.99), download.end()?))
        };
        let (nginx, ours) = world.both(|| one(&nginx.front), || one(&tunnel.front))?;
        table.beside(row, nginx.0, ours.0);
        if pace.is_none() {
            table.beside("fast.bulk", nginx.1, ours.1);
        }
    }
    Ok(())
}

/// Each way; a round trip is twice that.
const ONE_WAY: Duration = Duration::from_millis(25);

fn far(world: &World, table: &mut Table) -> Result<()> {
    let relay = world.relay()?;
    let wire = DelayedWire::start(relay.addr, ONE_WAY)?;
    let (front, client) = world.client(&relay, wire.addr, "far")?;
    front.wait("the distant tunnel", &client)?;
    let times = sequence(&front, Duration::from_secs(2))?;
    table.alone("far", percentile(&times, 0.5) / (ONE_WAY * 2).as_secs_f64() / 1e3);
    table.alone("far.down", down(&front, 32 * MIB)?);
    table.alone("far.up", up(&front, 32 * MIB)?);
    table.alone("far.down256", down(&front, BULK)?);
    table.alone("far.up256", up(&front, BULK)?);
    Ok(())
}

fn idle(world: &World, table: &mut Table) -> Result<()> {
    let relay = world.relay()?;
    let process = &relay.process;
    // The first session brings what all share.
    let _first = IdleSessions::start(world, &relay, 0..1)?;
    let (memory, descriptors, cpu) = (process.resident(), process.descriptors(), process.cpu());
    let n = (world.sessions - 1).max(1) as f64;
    let _sessions = IdleSessions::start(world, &relay, 1..world.sessions)?;
    table.alone("idle.open", (process.cpu() - cpu) * 1e3 / n);
    std::thread::sleep(Duration::from_secs(2));
    table.alone("idle", (process.resident() - memory) / n / 1024.0);
    table.alone("idle.fds", (process.descriptors() as f64 - descriptors as f64) / n);
    // As long as a heartbeat, so that each session has one.
    let heartbeat = relay_protocol::mux::Limits::default().heartbeat;
    let ((), used) = cpu_of(&[process], || {
        std::thread::sleep(heartbeat);
        Ok(())
    })?;
    let used = used.iter().sum::<f64>() * 100.0 / heartbeat.as_secs_f64();
    table.alone("idle.cpu", used * 1e3 / n);
    Ok(())
}

fn herd(world: &World, table: &mut Table) -> Result<()> {
    // They come from one address here, and from one each elsewhere.
    let n = world.sessions;
    let relay = world.relay_with(&format!("[limits]\nconnections_per_address = {}\n", 2 * n))?;
    let before = relay.process.cpu();
    let herd = Herd::start(world, &relay, n)?;
    table.alone("herd.open", (relay.process.cpu() - before) * 1e3 / n as f64);

    let (relay, times) = herd.outlive(|| relay.crash(world))?;
    table.alone("herd", percentile(&times, 1.0));
    table.alone("herd.p50", percentile(&times, 0.5));
    // What was begun and came to nothing is in it.
    table.alone("herd.cpu", relay.process.cpu() * 1e3 / n as f64);
    table.alone("herd.memory", mib(relay.process.peak()));
    Ok(())
}

fn start(world: &World, table: &mut Table) -> Result<()> {
    let relay = world.relay()?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let begun = Instant::now();
        let (front, client) = world.client(&relay, relay.addr, "start")?;
        front.wait("the tunnel", &client)?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        drop(client);
        // The relay learns that the name is free.
        std::thread::sleep(Duration::from_millis(300));
    }
    table.alone("start", median(times.into_iter()));
    Ok(())
}

fn mib(bytes: f64) -> f64 {
    bytes / MIB as f64
}
