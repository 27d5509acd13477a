"use strict";

// `import` finds the names as `require` does: Node.js looks through a spread of `require`.
module.exports = { ...require("./lib/errors.js"), ...require("./lib/program.js"), ...require("./lib/tunnel.js") };
