// The page as a widget, in a frame of its own: what is chosen there goes into the model, and what Python sets comes back.

function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.title = model.get("title");
  frame.setAttribute("sandbox", "allow-scripts allow-downloads");
  frame.style.cssText = `width:100%;height:${model.get("height")}px;border:0;resize:vertical;overflow:auto`;
  frame.srcdoc = model.get("page");
  let ownChange = false; // what the page itself has told needs not be told to it
  let turn = 0; // of what the page was told; what it said before it heard the last of it is out of date

  function tell() {
    if (ownChange) return;
    turn += 1;
    frame.contentWindow?.postMessage({ lmmLens: "choose", heads: model.get("heads"), part: model.get("part"), turn }, "*");
  }

  function listen({ source, data }) {
    if (source !== frame.contentWindow) return;
    if (data?.lmmLens === "ready") tell();
    if (data?.lmmLens !== "chosen" || data.turn < turn) return;
    ownChange = true;
    model.set("part", data.part);
    model.set("heads", data.heads);
    ownChange = false;
    model.save_changes();
  }

  addEventListener("message", listen);
  const changes = ["change:heads", "change:part"];
  changes.forEach((name) => model.on(name, tell));
  el.replaceChildren(frame);
  return () => {
    removeEventListener("message", listen);
    changes.forEach((name) => model.off(name, tell));
  };
}

export default { render };
