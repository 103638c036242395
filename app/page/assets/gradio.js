// Runs inside the page, before Gradio. Gradio's HTML component turns strings into functions, which the page's policy
// forbids (it has no 'unsafe-eval'). app/page/layout.py passes two strings: an empty template, and what connects the
// page to its channel. This script provides functions for them and refuses any other string.
(() => {
  const { nonce } = document.currentScript;
  const bridge = new URL(document.currentScript.dataset.bridge, document.baseURI).href;
  const EMPTY_TEMPLATE = ['return "";', "return ``;"]; // as Handlebars compiles it, and as Gradio passes it on
  const CONNECT = 'connect("act");';

  function functionOf(source) {
    const body = String(source).trim();
    if (EMPTY_TEMPLATE.includes(body)) return () => "";
    if (body !== CONNECT) throw new EvalError(`Not one of this page's functions: ${body.slice(0, 80)}`);
    return (_element, trigger, props, server, _upload, watch) =>
      import(bridge).then(({ connect }) => connect({ trigger, props, server, watch }));
  }

  window.Function = new Proxy(Function, {
    apply: (_, __, parts) => functionOf(parts.at(-1)),
    construct: (_, parts) => functionOf(parts.at(-1)),
  });

  // Gives the page's nonce to style elements that scripts create; styles that arrive as markup have no effect.
  const create = Document.prototype.createElement;
  Document.prototype.createElement = function createElement(name, options) {
    const node = create.call(this, name, options);
    if (node instanceof HTMLStyleElement) node.nonce = nonce;
    return node;
  };

  // The server's address is where the page came from, whatever a request header claimed.
  window.gradio_config.root = new URL(".", location.href).href.replace(/\/$/, "");
})();
