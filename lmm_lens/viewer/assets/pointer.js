// What is under the pointer, and legends.

const tip = document.getElementById("tip");

function tipOfToken(key) {
  const heads = headsShown(), sink = isSinkOf(heads, key, state.side) ? " · sink" : "";
  const value = isAtHand(state.query) ? three(meanWeights(state.query, heads, state.side)[key]) : "";
  return `${fullName(key)} · ${value} in ${nameOfHeads(heads)}${sink}`;
}

function showTip(event, text) {
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = "0"; // else a tip near the right edge is measured as narrow as what is left there
  const { width, height } = tip.getBoundingClientRect();
  const right = event.clientX + 14 + width > innerWidth, low = event.clientY + 18 + height > innerHeight;
  tip.style.left = `${Math.max(4, right ? event.clientX - width - 10 : event.clientX + 14)}px`;
  tip.style.top = `${low ? Math.max(4, event.clientY - height - 8) : event.clientY + 18}px`;
}

function hideTip() {
  tip.hidden = true;
}

document.addEventListener("scroll", hideTip, { capture: true, passive: true, signal: closing }); // what it spoke of has moved

// ---------------------------------------------------------------- legends

function paintRamp(id, colour, under) {
  const canvas = document.getElementById(id), width = 96, height = 10;
  sizeCanvas(canvas, width, height);
  const context = canvas.getContext("2d");
  context.fillStyle = under;
  context.fillRect(0, 0, width, height);
  for (let x = 0; x < width; x++) {
    context.fillStyle = colour(x / (width - 1));
    context.fillRect(x, 0, 1, height);
  }
}

const colourOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

