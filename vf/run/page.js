const slider = document.getElementById("step");
if (slider) {
  const blocks = [...document.querySelectorAll(".step")];
  const show = () => {
    blocks.forEach((block, index) => { block.hidden = index != slider.value; });
    slider.nextElementSibling.value = blocks[slider.value].dataset.step;
  };
  slider.parentElement.hidden = false;
  slider.addEventListener("input", show);
  show();
}
