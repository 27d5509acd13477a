//! A webhook receiver without a port: requests are answered by a function of this program.
//!
//! Takes `RELAY_URL`, `RELAY_TOKEN` and `RELAY_CA_FILE` from the environment, and goes on until Ctrl-C.

use http::{Request, Response, StatusCode};
use relay_client::{Body, Tunnel};

/// The largest webhook that is taken.
const LARGEST: usize = 1024 * 1024;

async fn receive(request: Request<Body>) -> Response<String> {
    let (head, body) = request.into_parts();
    let (status, text) = match body.bytes(LARGEST).await {
        Ok(bytes) => (StatusCode::OK, format!("{} {} with {} bytes\n", head.method, head.uri, bytes.len())),
        Err(error) => (StatusCode::PAYLOAD_TOO_LARGE, format!("{error}\n")),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let tunnel = Tunnel::builder().from_env().serve(receive).open().await?;
    println!("{}", tunnel.url());
    tokio::signal::ctrl_c().await?;
    Ok(tunnel.close().await?)
}
