// What a token reads as after each layer, where a logit lens or a latent lens was given.

// the list of its words, the layer of the head that is shown underlined; nothing where it was not read
function saidBy(key, layer) {
  const said = about.words?.of[key];
  if (!said) return [];
  const list = element("ol", "said");
  list.setAttribute("aria-label", "what it reads as after each layer");
  said.forEach(([text, strength], i) => {
    const item = element("li"), name = element("span", "quiet"), word = element("b"), number = element("span", "quiet");
    name.textContent = `${about.words.layers[i]} `;
    word.textContent = about.words.texts[text].trim() || `“${about.words.texts[text]}”`;
    number.textContent = ` ${strength.toFixed(2)}`;
    item.classList.toggle("here", about.words.layers[i] === about.layers[layer]);
    item.append(name, word, number);
    list.append(item);
  });
  return [list];
}

