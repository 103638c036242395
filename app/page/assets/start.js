// Fills the parts of the page, which are in it from the beginning (app/page/first), and starts it.
import * as composer from "./composer.js";
import * as conversations from "./conversations.js";
import * as header from "./header.js";
import * as memory from "./memory.js";
import * as page from "./page.js";
import * as settings from "./settings.js";
import * as thread from "./thread.js";
import * as welcome from "./welcome.js";

const facts = JSON.parse(document.getElementById("kw-facts").textContent);
const PARTS = { header, conversations, welcome, thread, composer, memory, "settings-panel": settings };
for (const [name, part] of Object.entries(PARTS)) {
  part.mount(document.getElementById(`kw-${name}`), facts[name.replace("-panel", "")]);
}
page.start();
