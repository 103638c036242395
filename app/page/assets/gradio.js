// Runs before Gradio. Its HTML component turns strings into functions, which the page's policy forbids ('unsafe-eval' is
// not in it). app/page/layout.py gives it two kinds of strings, an empty template and the name of a panel to mount. Here are their
// functions; any other string is refused.
(() => {
  const EMPTY_TEMPLATE = ['return "";', "return ``;"]; // as Handlebars has compiled it, and what becomes of that
  const MOUNT = /^mount\("(\w+)"[^;]*\);$/;

  function functionOf(source) {
    const body = String(source).trim();
    if (EMPTY_TEMPLATE.includes(body)) return () => "";
    const name = MOUNT.exec(body)?.[1];
    if (!name) throw new EvalError(`Not one of this page's functions: ${body.slice(0, 80)}`);
    return (element, trigger, props, server, _upload, watch) =>
      import(`/keepwarm/${name}.js`).then((panel) =>
        panel.mount(element, props.value, { trigger, props, server, watch }),
      );
  }

  window.Function = new Proxy(Function, {
    apply: (_, __, parts) => functionOf(parts.at(-1)),
    construct: (_, parts) => functionOf(parts.at(-1)),
  });

  // Styles that scripts make belong to the page; one that comes as markup does not, and has no effect.
  const { nonce } = document.currentScript;
  const create = Document.prototype.createElement;
  Document.prototype.createElement = function createElement(name, options) {
    const node = create.call(this, name, options);
    if (node instanceof HTMLStyleElement) node.nonce = nonce;
    return node;
  };

  // Where the server is, the browser knows best: it is where the page came from. No header decides it.
  window.gradio_config.root = new URL(".", location.href).href.replace(/\/$/, "");
})();
