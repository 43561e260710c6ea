// The browser's side of FileDrop and FileOffer: files cross to the kernel and back in pieces, since one message of the
// size of a video would be refused by the server.

const PIECE = 1 << 20;

// Every file of what was dropped, folders opened: [name, File].
async function opened(entry) {
  if (entry.isFile) return [await new Promise((yes, no) => entry.file(yes, no))];
  const reader = entry.createReader();
  const found = [];
  for (;;) { // a reader gives a hundred at a time
    const some = await new Promise((yes, no) => reader.readEntries(yes, no));
    if (!some.length) break;
    for (const each of some) found.push(...await opened(each));
  }
  return found;
}

function button(text, act) {
  const it = document.createElement("button");
  it.className = "jupyter-widgets jupyter-button widget-button lm-Widget";
  it.style.width = "auto";
  it.textContent = text;
  it.onclick = act;
  return it;
}

function drop({ model, el }) {
  const field = document.createElement("div");
  field.className = "diffslic-drop";
  field.style.cssText = "border: 2px dashed #888; border-radius: 8px; padding: 1.2em; text-align: center";
  const text = document.createElement("p");
  const status = document.createElement("p");
  status.setAttribute("role", "status");
  const inputs = ["multiple", "webkitdirectory"].map((kind) => {
    const input = document.createElement("input");
    input.type = "file";
    input[kind] = true;
    input.style.display = "none";
    input.onchange = () => send([...input.files]).finally(() => { input.value = ""; });
    return input;
  });
  const buttons = [button("Choose files", () => inputs[0].click()), button("Choose a folder", () => inputs[1].click())];
  field.append(text, ...buttons, ...inputs, status);
  el.append(field);

  let arrived; // resolves when the kernel has written a piece
  model.on("msg:custom", (message) => { if (message.kind === "next") arrived?.(message.goes_on); });
  const show = () => { text.textContent = model.get("label"); status.textContent = model.get("status"); };
  model.on("change:label change:status", show);
  show();

  const crossed = (content, buffers) => new Promise((answer) => {
    arrived = answer;
    model.send(content, undefined, buffers);
  });

  async function send(files) {
    const wanted = model.get("suffixes");
    files = files.filter(({ name }) => !name.startsWith(".")
      && wanted.some((suffix) => name.toLowerCase().endsWith(suffix)));
    const total = files.reduce((sum, file) => sum + file.size, 0);
    buttons.forEach((each) => { each.disabled = true; });
    try {
      if (!await crossed({ kind: "begin", names: files.map(({ name }) => name), total })) return;
      for (const file of files) {
        for (let from = 0; from === 0 || from < file.size; from += PIECE) {
          const piece = await file.slice(from, from + PIECE).arrayBuffer();
          if (!await crossed({ kind: "piece", name: file.name }, [new DataView(piece)])) return;
        }
      }
      await crossed({ kind: "end" });
    } finally {
      buttons.forEach((each) => { each.disabled = false; });
    }
  }

  field.ondragover = (event) => { event.preventDefault(); field.style.borderColor = "#1976d2"; };
  field.ondragleave = () => { field.style.borderColor = "#888"; };
  field.ondrop = async (event) => {
    event.preventDefault();
    field.style.borderColor = "#888";
    // The list is emptied when this function first waits: all entries are taken before.
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    await send((await Promise.all(entries.map(opened))).flat());
  };
}

function offer({ model, el }) {
  const it = button("", () => { it.disabled = true; pieces = []; model.send({ kind: "wanted" }); });
  it.classList.add("diffslic-offer");
  let pieces = [];
  model.on("msg:custom", (message, buffers) => {
    if (message.kind === "piece") pieces.push(buffers[0]);
    if (message.kind === "end") {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob(pieces));
      link.download = model.get("name");
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      it.disabled = false;
    }
  });
  const show = () => { it.textContent = `Download ${model.get("name")} (${model.get("size")})`; };
  model.on("change:name change:size", show);
  show();
  el.append(it);
}

export default { render: (view) => (view.model.get("role") === "drop" ? drop(view) : offer(view)) };
