//! A whole test in one process: a relay, a tunnel to a handler, and somebody who calls it.

use std::net::SocketAddr;

use http::{Request, Response};
use relay_client::{Body, Tunnel};
use relay_server::Relay;
use relay_server::config::Config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = tempfile::tempdir()?;
    let relay = Relay::start(Config::on_loopback("relay.localhost", directory.path())).await?;
    let token = relay.create_token("tests").await?;

    let mut tunnel = Tunnel::builder()
        .relay(relay.url())
        .token(token)
        .ca_file(relay.ca_file().ok_or("a relay on loopback has a CA of its own")?)
        .serve(|request: Request<Body>| async move { Response::new(format!("hello from {}", request.uri())) })
        .capture()
        .open()
        .await?;
    println!("{}", tunnel.url());

    // In a test this is the program that sends webhooks. It may as well use HTTPS and trust `relay.ca_file()`.
    let host = tunnel.url().trim_start_matches("https://");
    let answer = post(relay.http_addr().ok_or("it serves HTTP")?, host, "/hooks").await?;
    println!("{answer}");

    let request = tunnel.next_request().await.ok_or("the tunnel has ended")?;
    println!("{} {} arrived and was answered with {:?}", request.method, request.path, request.status);

    tunnel.close().await?;
    relay.shutdown().await;
    Ok(())
}

async fn post(relay: SocketAddr, host: &str, path: &str) -> std::io::Result<String> {
    let mut tcp = TcpStream::connect(relay).await?;
    let head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    tcp.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await?;
    Ok(answer)
}
