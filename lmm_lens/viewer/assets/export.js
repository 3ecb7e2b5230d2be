// Saving a figure as a file, without any network: as SVG, or as PNG of twice its size.

const FIGURES = { pictures: figureOfPictures, heads: figureOfMap, sheet: figureOfSheet };
const PNG_SCALE = 2;

for (const button of document.querySelectorAll("#page [data-save]")) {
  button.addEventListener("click", () => saveFigure(button.dataset.save, button.dataset.kind));
}

async function saveFigure(name, kind) {
  const shown = whatIsShown();
  if (shown === null) return; // weights are being unpacked: the page is busy, and a moment later it is not
  const svg = FIGURES[name](shown);
  const file = kind === "svg" ? new Blob([svg], { type: "image/svg+xml" }) : await rasterised(svg);
  const link = element("a");
  link.href = URL.createObjectURL(file);
  link.download = `${name === "pictures" ? nameOfHeads(shown.heads).replaceAll(" ", "-") : name}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // once it is written, however slow the disk is
}

async function rasterised(svg) {
  const picture = new Image();
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await picture.decode();
  const canvas = element("canvas");
  canvas.width = picture.naturalWidth * PNG_SCALE;
  canvas.height = picture.naturalHeight * PNG_SCALE;
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

