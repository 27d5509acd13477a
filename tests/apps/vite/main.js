import { message } from "./message.js";

const show = (text) => (document.querySelector("#message").textContent = text);

show(message);
import.meta.hot.accept("./message.js", (updated) => show(updated.message));
