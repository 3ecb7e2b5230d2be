// Scenes: the prompt rows that a page holds. Each is drawn into the page as it came; what was chosen goes along.

const weightsHeld = new Map(); // "scene-side-query" -> {levels, largest}, unpacked
const blank = document.getElementById("page").cloneNode(true);
const leftAt = new Map(); // what was shown of a part of the model when the page went to the other
const partOf = (number) => document.getElementById(`about-${number}`).dataset.part;
let heard = 0; // the number of the last message of the page that this one is in
let leave = null; // takes the listeners of the scene that is shown with it

function openScene(number, kept = {}) {
  leave?.abort();
  leave = new AbortController();
  delete document.documentElement.dataset.ready;
  document.getElementById("page").replaceWith(blank.cloneNode(true));
  draw(JSON.parse(document.getElementById(`about-${number}`).textContent), number, leave.signal, kept);
}

openScene(0);

