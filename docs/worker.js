// Search on pages opened as files: browsers start no Worker there, so its script runs in an empty frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      const scope = frame.contentWindow;
      function load(address) {
        return new Promise(function (done, failed) {
          const script = frame.contentDocument.createElement("script");
          script.src = address;
          script.onload = done;
          script.onerror = failed;
          frame.contentDocument.body.appendChild(script);
        });
      }
      scope.importScripts = function (...addresses) {
        return addresses.reduce(function (before, address) {
          return before.then(function () { return load(new URL(address, url).href); });
        }, Promise.resolve());
      };
      scope.postMessage = (data) => {
        const event = new MessageEvent("message", { data: data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      };
      this.scope = scope;
      this.loaded = load(new URL(url, document.baseURI).href);
    }
    postMessage(data) {
      this.loaded.then(() => this.scope.dispatchEvent(new this.scope.MessageEvent("message", { data: data })));
    }
    terminate() {}
  };
}
