/** Arguments of {@link tunnel}: the flags of `relay http`. What is not given comes from the environment and the files that
 * the program reads itself. Times are in milliseconds. */
export interface TunnelOptions {
  /** Asks for `https://SUBDOMAIN.<domain>`; never silently replaced by another name. */
  subdomain?: string;
  /** Asks for a fresh random name instead of the one remembered for this directory. */
  random?: boolean;
  /** Takes the name over from a live session of the same token. */
  takeover?: boolean;
  /** The sender is answered with 504 after this long. */
  timeout?: number;
  /** What the service sees as Host: "rewrite", "preserve", or a host. */
  hostHeader?: string;
  /** How the service is spoken to. */
  upstreamProtocol?: "http1" | "h2c";
  /** The relay's URL. */
  relay?: string;
  /** The address to dial instead of the relay's own, as in `127.0.0.1:8443`. */
  relayAddr?: string;
  /** Who we are there. */
  token?: string;
  /** The CA to trust for the relay, a PEM file. */
  caFile?: string;
  /** Gives up when the session was lost for this long; for ever otherwise. */
  maxReconnectTime?: number;
  /** How long the public URL may take; 30 s otherwise. */
  readyWithin?: number;
}

/** A request that has been answered, or that was not. */
export interface Exchange {
  /** Its id, as the service has seen it in `Relay-Request-Id`. */
  readonly id: string;
  /** The request's method. */
  readonly method: string;
  /** The raw target, with its query. */
  readonly path: string;
  /** What the sender was answered with; null where no answer was sent. */
  readonly status: number | null;
  /** Milliseconds from the start of the deadline to the end of the body. */
  readonly durationMs: number;
  /** Null, or the code of what went wrong, such as `upstream-refused`. */
  readonly error: string | null;
}

/** What {@link Tunnel.waitFor} waits for. */
export interface Wanted {
  /** The path; the query is compared only where this has one, and a `*` at its end stands for anything. */
  path?: string;
  /** The request's method. */
  method?: string;
  /** What the sender was answered with. */
  status?: number;
  /** Those that came no later than this one do not count. */
  after?: Exchange;
  /** How long to wait, in milliseconds; 10 s otherwise. */
  timeout?: number;
}

/** A tunnel that is open. It keeps this process running until it is closed, as a server does. */
export class Tunnel {
  private constructor();
  /** The public URL, without a slash at its end. */
  readonly url: string;
  /** The name below the relay's domain. */
  readonly name: string;
  /** Where requests go. */
  readonly upstream: string;
  /** The relay's own URL. */
  readonly relay: string;
  /** The CA that callers of `url` must trust, where it is not a public one. */
  readonly caFile: string | null;
  /** The process id of the program. */
  readonly pid: number;
  /** Why the tunnel has ended although nobody has closed it; null otherwise. */
  readonly error: RelayError | null;
  /** The last 1,000 requests that have been answered, in the order in which their answers ended. */
  readonly exchanges: Exchange[];
  /** The first exchange that fits, also one that has been before. Rejects with {@link TimedOut}, or with what has ended the
   * tunnel. */
  waitFor(wanted?: Wanted | string): Promise<Exchange>;
  /** Ends the tunnel; what is under way may finish within 2 s. Does nothing where it has ended already. */
  close(): Promise<void>;
  /** For `await using`: closes the tunnel. */
  [Symbol.asyncDispose](): Promise<void>;
}

/** Opens a tunnel to a port, `host:port`, an `http://` or `https://` URL, or `unix:/path`. Rejects with the
 * {@link RelayError} that says why there is none. */
export function tunnel(target: number | string, options?: TunnelOptions): Promise<Tunnel>;

/** The path of the `relay` program: `RELAY_BINARY`, else the one that came with this package, else one on the PATH. */
export function program(): string;

/** There is no tunnel, or no longer. The message is the program's own: what happened, and what mends it. */
export class RelayError extends Error {
  /** The program's exit code; null where it has not ended by itself. */
  readonly exitCode: number | null;
}
/** There is no `relay` to start. */
export class ProgramMissing extends RelayError {}
/** What was waited for has not come in time. */
export class TimedOut extends RelayError {}
/** An argument or a configuration file is wrong. */
export class Usage extends RelayError {}
/** The relay does not accept the token, or no longer does. */
export class Unauthorized extends RelayError {}
/** The name asked for is in use, or another's. */
export class NameTaken extends RelayError {}
/** The relay could not be reached at the start. */
export class Unreachable extends RelayError {}
/** The session was lost, and `maxReconnectTime` passed. */
export class GaveUp extends RelayError {}
/** The name went to another session while the tunnel was up. */
export class NameLost extends RelayError {}
