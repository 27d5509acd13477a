// The same objects as for `require`, so that an error is an instance of its class whoever has loaded which.
import relay from "./index.js";

export const {
  GaveUp,
  NameLost,
  NameTaken,
  ProgramMissing,
  RelayError,
  TimedOut,
  Tunnel,
  Unauthorized,
  Unreachable,
  Usage,
  program,
  tunnel,
} = relay;
