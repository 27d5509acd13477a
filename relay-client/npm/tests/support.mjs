// A service of one's own, and the way to the relay that TEST_RELAY names: a JSON object of options for `tunnel`.
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { request } from "node:https";
import { connect } from "node:net";

/** @type {import("relay-tunnel").TunnelOptions} */
export const way = JSON.parse(process.env.TEST_RELAY ?? "{}");

/** A service that echoes. @returns {Promise<{port: number, close: () => void}>} */
export async function echo() {
  const server = createServer((incoming, answer) => incoming.pipe(answer));
  await new Promise((done) => server.listen(0, "127.0.0.1", () => done(undefined)));
  const address = server.address();
  if (typeof address !== "object" || !address) throw new Error("no address");
  return {
    port: address.port,
    close() {
      server.close();
      server.closeAllConnections();
    },
  };
}

/** A port at which nothing listens, and nobody else will: a connection has it. @returns {Promise<{port: number, close: () => void}>} */
export async function closedPort() {
  const { port, close } = await echo();
  const connection = connect(port, "127.0.0.1");
  await once(connection, "connect");
  return {
    port: connection.localPort ?? 0,
    close() {
      connection.destroy();
      close();
    },
  };
}

/**
 * Sends a webhook, as a provider would. The relay's names lead to this machine.
 * @param {import("relay-tunnel").Tunnel} tunnel
 * @param {string} path
 * @param {string} [body]
 * @returns {Promise<{status: number | undefined, body: string, relayError: string | string[] | undefined}>}
 */
export function post(tunnel, path, body = "") {
  const options = {
    method: "POST",
    ca: tunnel.caFile ? readFileSync(tunnel.caFile) : undefined,
    agent: false,
    /** @type {import("node:net").LookupFunction} */
    lookup: (_host, { all }, found) =>
      all ? found(null, [{ address: "127.0.0.1", family: 4 }]) : found(null, "127.0.0.1", 4),
  };
  return new Promise((resolve, reject) => {
    const sent = request(tunnel.url + path, options, async (answer) => {
      let text = "";
      for await (const piece of answer) text += piece;
      resolve({ status: answer.statusCode, body: text, relayError: answer.headers["relay-error"] });
    });
    sent.on("error", reject);
    sent.end(body);
  });
}

/** Whether a process runs; one that has ended and whom nobody has waited for does not. @param {number} pid */
export function isRunning(pid) {
  try {
    return readFileSync(`/proc/${pid}/stat`, "utf8").split(")").at(-1)?.trim()[0] !== "Z";
  } catch {
    return false;
  }
}
