//! A public URL for a port of this machine: `http PORT`.
//!
//! Takes `RELAY_URL`, `RELAY_TOKEN` and `RELAY_CA_FILE` from the environment, and goes on until Ctrl-C.

use relay_client::Tunnel;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port = std::env::args().nth(1).ok_or("which port? http PORT")?;
    let tunnel = Tunnel::builder().from_env().upstream(port).open().await?;
    println!("{}", tunnel.url());

    let mut status = tunnel.status();
    let changes = async {
        while status.changed().await.is_ok() {
            eprintln!("{:?}", *status.borrow_and_update());
        }
    };
    tokio::select! {
        () = changes => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    Ok(tunnel.close().await?)
}
