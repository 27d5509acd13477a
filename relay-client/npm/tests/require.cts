// The types as CommonJS sees them; nothing here is run.
import relay = require("relay-tunnel");

export async function main(): Promise<string> {
  const t: relay.Tunnel = await relay.tunnel("localhost:3000", { upstreamProtocol: "h2c" });
  // @ts-expect-error: a tunnel is made by `tunnel`
  new relay.Tunnel();
  return t.url;
}
