//! How `relay` is told to end, and what it says when it cannot go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::PipeReader;
use std::process::{Command, Stdio};
use std::time::Instant;

use relay_tests::process::run;
use relay_tests::terminal::Terminal;
use relay_tests::world::connect_tls;
use relay_tests::{AT_ONCE, App, Process, RelayServer, Wire, within};
use rustix::process::Signal;
use tokio::net::TcpListener;
use tokio::process::Child;

mod a_signal {
    use super::*;

    /// Ctrl-C reaches whole groups of processes, wherever their input comes from.
    #[tokio::test]
    async fn of_a_terminal_reaches_a_command_once() {
        let relay = RelayServer::spawn([""; 0]).await;
        let (token, app) = (relay.token("me").await, App::echo().await);
        let binary = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("relay");
        let way = format!("--relay {} --relay-addr {} --token {token}", relay.url, relay.https);
        // It counts each signal, however soon one follows the other.
        let script = "import os, signal, sys, time\n\
                      r, w = os.pipe(); os.set_blocking(w, False); signal.set_wakeup_fd(w)\n\
                      signal.signal(signal.SIGINT, lambda *_: None)\n\
                      print('started', flush=True); n = len(os.read(r, 1))\n\
                      time.sleep(0.5); os.set_blocking(w, False); os.write(w, b' ')\n\
                      print('in all', n + len(os.read(r, 99)) - 1, flush=True); sys.exit(9)";
        let line = format!("exec {} run {} {way} -- python3 -c \"$SCRIPT\" < /dev/null", binary.display(), app.addr());
        let ca = relay.ca_file().display().to_string();
        let variables = [("SCRIPT", script), ("RELAY_CA_FILE", ca.as_str())];
        let terminal = Terminal::open((200, 20), &variables, &["/bin/sh", "-c", &line]).await;
        terminal.shows("started").await;
        terminal.press(&["C-c"]).await;
        terminal.shows("in all 1").await;
        assert_eq!(terminal.ended().await, 9);
    }

    /// Whoever presses Ctrl-C twice does not want to wait.
    #[tokio::test]
    async fn that_comes_twice_waits_for_nothing() {
        let relay = RelayServer::spawn([""; 0]).await;
        let token = relay.token("me").await;
        let app = App::serve(|_| std::future::pending()).await;
        let mut client = relay.client(&token, &app.addr().to_string(), &[]).await;
        let host = client.url().trim_start_matches("https://").to_owned();
        let mut sender = Wire::new(connect_tls(relay.https, &host, &relay.ca_file(), &[b"http/1.1"]).await);
        sender.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        app.reached(1).await;
        client.process.signal(Signal::INT);
        client.process.error_line("Ctrl-C ends it at once").await;
        let second = Instant::now();
        assert_eq!(client.process.terminate().await.code(), 143, "the code of the signal that ended it");
        assert!(second.elapsed() < AT_ONCE, "{:?}", second.elapsed());
    }

    #[tokio::test]
    async fn ends_a_login_whose_relay_does_not_answer() {
        let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", relay.local_addr().unwrap());
        for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let mut login = Process::spawn("relay", ["login", &url, "--token", "rly_x"]).await;
            let _silent = within("its connection", relay.accept()).await.unwrap();
            login.signal(signal);
            let ended = login.wait().await;
            assert_eq!((ended.code(), ended.stderr.as_str()), (code, "relay: nothing was stored\n"));
        }
    }
}

mod what_is_said {
    use super::*;

    /// A client whose standard output is a pipe that is full, and what fills it; `waits` as pipes usually do.
    async fn unread(relay: &RelayServer, app: &str, waits: bool) -> (Child, PipeReader, usize) {
        let token = relay.token("me").await;
        let (reader, mut writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let mut filled = 0;
        while let Ok(n) = std::io::Write::write(&mut writer, &[b' '; 4096]) {
            filled += n;
        }
        rustix::io::ioctl_fionbio(&writer, !waits).unwrap();
        let binary = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("relay");
        let mut client = tokio::process::Command::new(&binary);
        client.args(relay.arguments(&token, &["http", app, "--subdomain", "hooks", "--output", "json"]));
        client.env_clear().env("HOME", relay.data_dir()).stdin(Stdio::null()).stderr(Stdio::null());
        let mut running = client.stdout(writer).kill_on_drop(true).spawn().unwrap();
        // Its descriptor of the pipe goes with it.
        drop(client);
        // Time for the client to have its tunnel and to find the pipe full. One that does not wait is gone then.
        let mut looks = 0;
        while looks < 200 && running.try_wait().unwrap().is_none() {
            let is_up = relay.get_admin("/metrics").await.text().contains("relay_tunnels 1\n");
            looks += usize::from(is_up);
        }
        (running, reader, filled)
    }

    /// Reads past what filled the pipe, and then a line.
    async fn first_line(mut reader: PipeReader, filled: usize) -> String {
        let line = tokio::task::spawn_blocking(move || {
            let mut all = vec![0; filled];
            std::io::Read::read_exact(&mut reader, &mut all).unwrap();
            let mut line = String::new();
            std::io::BufRead::read_line(&mut std::io::BufReader::new(&reader), &mut line).unwrap();
            line
        });
        within("the first line", line).await.unwrap()
    }

    /// A parent that has made a pipe one that does not wait, as Node.js does, reads when it has time.
    #[tokio::test]
    async fn waits_for_a_slow_reader() {
        let relay = RelayServer::spawn([""; 0]).await;
        let (mut running, reader, filled) = unread(&relay, "3000", false).await;
        let line = first_line(reader, filled).await;
        assert!(line.starts_with(r#"{"event":"tunnel.ready""#) && line.ends_with('\n'), "{line:?}");
        running.kill().await.unwrap();
    }

    /// A script that waits for its own request reads no lines meanwhile; and somebody may press Ctrl-S.
    #[tokio::test]
    async fn holds_nothing_up_while_nobody_reads() {
        let relay = RelayServer::spawn([""; 0]).await;
        let app = App::echo().await;
        let (mut running, _reader, _) = unread(&relay, &app.addr().to_string(), true).await;
        let (_, domain) = relay.url.split_once("://").unwrap();
        let host = format!("hooks.{domain}");
        let mut sender = relay.raw(host.split(':').next().unwrap()).await;
        for n in 0..300 {
            sender.send(format!("GET /{n} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
            assert_eq!(within("an answer", sender.message()).await.unwrap().status(), 200, "{n}");
        }
        let pid = rustix::process::Pid::from_raw(running.id().unwrap().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        let ended = within("its end", running.wait()).await.unwrap();
        assert_eq!(ended.code(), Some(143));
    }

    /// A relay is a stranger, too.
    #[tokio::test]
    async fn by_a_relay_cannot_write_on_the_terminal() {
        let relay = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", relay.local_addr().unwrap());
        let mut client = Process::spawn("relay", ["http", "3000", "--relay", &url, "--token", "rly_x"]).await;
        let (tcp, _) = within("its connection", relay.accept()).await.unwrap();
        let mut wire = Wire::new(tcp);
        wire.head().await.unwrap();
        let body = r#"{"error":{"code":"no","message":"No.\u001b[2J\nrelay:\u009b31m","hint":"\u202egnp"}}"#;
        let length = body.len();
        wire.send(format!("HTTP/1.1 403 No\r\nRelay-Error: no\r\nContent-Length: {length}\r\n\r\n{body}")).await;
        let ended = client.wait().await;
        assert_eq!(ended.code(), 5);
        let last: Vec<_> = ended.stderr.lines().rev().take(2).collect();
        assert_eq!(last, [r"relay:\u{9b}31m \u{202e}gnp", r"relay: No.\u{1b}[2J"], "{}", ended.stderr);
    }

    /// A file that came with somebody's repository.
    #[tokio::test]
    async fn of_a_file_cannot_write_on_the_terminal() {
        let home = std::sync::Arc::new(tempfile::tempdir().unwrap());
        std::fs::write(home.path().join("relay.toml"), "\"\\u001b[2J\" = 1\n").unwrap();
        for arguments in [&["http", "3000"][..], &["config", "check"], &["login", "relay.test", "--token", "x"]] {
            let ended = Process::spawn_in(home.clone(), "relay", arguments, &[]).await.wait().await;
            assert!(ended.code() != 0 && !ended.stderr.contains('\u{1b}'), "{arguments:?}: {}", ended.stderr);
        }
    }

    /// A closed terminal is no reason to fail differently.
    #[tokio::test]
    async fn can_go_nowhere() {
        // Builds the binary where that has to be done first.
        run("relay", ["--version"]).await;
        let binary = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("relay");
        for (arguments, code) in [(&["http", "3000"][..], 2), (&["logout"], 0), (&["login", "x", "--token", "a b"], 2)]
        {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let home = tempfile::tempdir().unwrap();
            let mut relay = Command::new(&binary);
            relay.args(arguments).env_clear().env("HOME", home.path()).current_dir(home.path());
            let status = relay.stdin(Stdio::null()).stderr(writer).status().unwrap();
            assert_eq!(status.code(), Some(code), "{arguments:?}");
        }
    }
}
