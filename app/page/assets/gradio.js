// Runs before Gradio. Gradio's HTML component turns strings into functions, which the page's policy forbids (it has no
// 'unsafe-eval'). app/page/layout.py passes two kinds of strings: an empty template, and the name of a panel to mount.
// This script provides functions for them and refuses any other string.
(() => {
  const EMPTY_TEMPLATE = ['return "";', "return ``;"]; // as Handlebars compiles it, and as Gradio passes it on
  const MOUNT = /^mount\("(\w+)"[^;]*\);$/;

  function functionOf(source) {
    const body = String(source).trim();
    if (EMPTY_TEMPLATE.includes(body)) return () => "";
    const name = MOUNT.exec(body)?.[1];
    if (!name) throw new EvalError(`Not one of this page's functions: ${body.slice(0, 80)}`);
    return (element, trigger, props, server, _upload, watch) =>
      import(`./${name}.js`).then((panel) => panel.mount(element, props.value, { trigger, props, server, watch }));
  }

  window.Function = new Proxy(Function, {
    apply: (_, __, parts) => functionOf(parts.at(-1)),
    construct: (_, parts) => functionOf(parts.at(-1)),
  });

  // Gives the page's nonce to style elements that scripts create; styles that arrive as markup have no effect.
  const { nonce } = document.currentScript;
  const create = Document.prototype.createElement;
  Document.prototype.createElement = function createElement(name, options) {
    const node = create.call(this, name, options);
    if (node instanceof HTMLStyleElement) node.nonce = nonce;
    return node;
  };

  // The server's address is where the page came from, whatever a request header claimed.
  window.gradio_config.root = new URL(".", location.href).href.replace(/\/$/, "");
})();
