// The browser's side of FileDrop and FileOffer: files cross to the kernel and back in pieces, since one message of the
// size of a video would be refused by the server.

const PIECE = 1 << 20;
const PATIENCE = 600000; // milliseconds for an answer: the kernel may be at work on another video

// Every file of what was dropped, folders opened: {path, file}, the path from the folder on.
async function opened(entry, folder = "") {
  const path = folder + entry.name;
  if (entry.isFile) return [{ path, file: await new Promise((yes, no) => { entry.file(yes, no); }) }];
  const reader = entry.createReader();
  const found = [];
  for (;;) { // a reader gives a hundred at a time
    const some = await new Promise((yes, no) => { reader.readEntries(yes, no); });
    if (!some.length) return found;
    for (const each of some) found.push(...await opened(each, `${path}/`));
  }
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
    input.onchange = async () => {
      await send([...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));
      input.value = "";
    };
    return input;
  });
  const buttons = [button("Choose files", () => inputs[0].click()), button("Choose a folder", () => inputs[1].click())];
  field.append(text, ...buttons, ...inputs, status);
  el.append(field);

  let busy = false;
  let number = 0; // of the message that waits for its answer
  let answered;
  const answer = (message) => { if (message.kind === "next" && message.number === number) answered?.(message); };
  const show = () => { text.textContent = model.get("label"); status.textContent = model.get("status"); };
  model.on("msg:custom", answer);
  model.on("change:label change:status", show);
  show();

  const crossed = (content, buffers) => new Promise((yes, no) => {
    number += 1;
    const late = setTimeout(no, PATIENCE, new Error("the kernel does not answer"));
    answered = (message) => { clearTimeout(late); yes(message); };
    model.send({ ...content, number }, undefined, buffers);
  });

  async function send(files) {
    if (busy) {
      status.textContent = "wait until the files before have come";
      return;
    }
    busy = true;
    buttons.forEach((each) => { each.disabled = true; });
    try {
      const begun = await crossed({
        kind: "begin", paths: files.map(({ path }) => path), sizes: files.map(({ file }) => file.size),
      });
      for (const index of begun.take ?? []) {
        const { file } = files[index];
        for (let from = 0; from === 0 || from < file.size; from += PIECE) {
          const piece = await file.slice(from, from + PIECE).arrayBuffer();
          if (!(await crossed({ kind: "piece", index }, [new DataView(piece)])).goes_on) return;
        }
      }
      if (begun.goes_on) await crossed({ kind: "end" });
    } catch (error) {
      status.textContent = `the files could not be read: ${error.message}`;
    } finally {
      busy = false;
      buttons.forEach((each) => { each.disabled = false; });
    }
  }

  field.ondragover = () => { field.style.borderColor = "#1976d2"; };
  field.ondragleave = () => { field.style.borderColor = "#888"; };
  field.ondrop = async (event) => {
    field.style.borderColor = "#888";
    // The list is emptied when this function first waits: all entries are taken before.
    const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
    try {
      await send((await Promise.all(entries.map((entry) => opened(entry)))).flat());
    } catch (error) {
      status.textContent = `the files could not be read: ${error.message}`;
    }
  };
  // What misses the field would be opened in place of the page.
  const stay = (event) => event.preventDefault();
  for (const kind of ["dragover", "drop"]) window.addEventListener(kind, stay);
  return () => {
    for (const kind of ["dragover", "drop"]) window.removeEventListener(kind, stay);
    model.off("msg:custom", answer);
    model.off("change:label change:status", show);
  };
}

function offer({ model, el }) {
  let pieces = null; // while this view waits for the file
  const it = button("", () => {
    it.disabled = true;
    pieces = [];
    model.send({ kind: "wanted" });
  });
  it.classList.add("diffslic-offer");
  const came = (message, buffers) => {
    if (pieces === null) return; // another view asked
    if (message.kind === "piece") {
      pieces.push(buffers[0]);
      return;
    }
    if (message.kind === "end") {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob(pieces));
      link.download = model.get("name");
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60000);
      it.disabled = false;
    } else {
      it.textContent = `${model.get("name")} is no longer there`;
    }
    pieces = null;
  };
  const show = () => { it.textContent = `Download ${model.get("name")} (${model.get("size")})`; };
  model.on("msg:custom", came);
  model.on("change:name change:size", show);
  show();
  el.append(it);
  return () => {
    model.off("msg:custom", came);
    model.off("change:name change:size", show);
  };
}

export default { render: (view) => (view.model.get("role") === "drop" ? drop(view) : offer(view)) };
