//! Waits for one webhook, and shows it.
//!
//! Takes `RELAY_URL`, `RELAY_TOKEN` and `RELAY_CA_FILE` from the environment.

use relay_client::Tunnel;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut tunnel = Tunnel::builder().from_env().capture().open().await?;
    println!("{}", tunnel.url());

    let request = tunnel.next_request().await.ok_or("the tunnel ended before a request came")?;
    println!("{} {}", request.method, request.path);
    for (name, value) in &request.headers {
        println!("{name}: {}", String::from_utf8_lossy(value.as_bytes()));
    }
    println!("\n{}", String::from_utf8_lossy(&request.body));
    Ok(tunnel.close().await?)
}
