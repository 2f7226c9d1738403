/* Draws the figures of a page. Data and library stand compressed in the page itself. */
'use strict';

const drawn = [];   // functions that draw again, after a change of size or colours
const redraws = {};  // the same by name of the figure
let pageData = null;
let width = -1;     // number of the width that is chosen, of a model of several

async function unpack(id) {
  const text = document.getElementById(id).textContent.trim();
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  return new Response(stream).text();
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim();
}

function isDark() {
  return window.matchMedia('(prefers-color-scheme: dark)').matches;
}

/* Replaces names of colours ('@ours') by those of the page's style, at any depth. */
function coloured(value) {
  if (value === '@heat') {  // text of one colour is read on all of it
    return isDark()
      ? [[0, '#1a2430'], [0.5, '#54407a'], [1, '#ab4326']]
      : [[0, '#f3f6fb'], [0.5, '#f7d3a4'], [1, '#f08e58']];
  }
  if (typeof value === 'string' && value.startsWith('@')) return colour(value.slice(1));
  if (Array.isArray(value)) return value.map(coloured);
  if (value !== null && typeof value === 'object') {
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, coloured(part)]));
  }
  return value;
}

/* The end of a dotted name tells layers apart, the beginning of a name in words tells classes. */
function shorten(name, most, end) {
  if (name.length <= most) return name;
  return end ? '…' + name.slice(1 - most) : name.slice(0, most - 1) + '…';
}

function themed(layout) {
  const axis = {
    gridcolor: '@grid', linecolor: '@rule', zerolinecolor: '@rule', tickcolor: '@rule',
    hoverformat: '.4~g',
  };
  const result = {
    paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', dragmode: false,
    font: { color: '@text', size: 12 }, bargap: 0.1,
    hoverlabel: { bgcolor: '@card', bordercolor: '@rule', font: { color: '@text' }, align: 'left' },
    ...layout,
  };
  for (const key of new Set(['xaxis', 'yaxis', ...Object.keys(layout)])) {
    if (/^[xy]axis\d*$/.test(key)) result[key] = { ...axis, ...(layout[key] || {}) };
  }
  return coloured(result);
}

function draw(element, figure) {
  const layout = structuredClone(figure.layout);
  const wrapper = element.parentElement;
  const wanted = figure.least_width || 0;
  element.style.minWidth = wanted > wrapper.clientWidth ? wanted + 'px' : '';
  const most = Math.max(14, Math.min(44, Math.floor(element.clientWidth / 20)));
  for (const { axis, names, end } of figure.long_names || []) {
    Object.assign(layout[axis], {
      tickvals: layout[axis].tickvals || names,
      ticktext: names.map((name) => shorten(name, most, end)) });
  }
  return Plotly.react(element, coloured(structuredClone(figure.data)), themed(layout), {
    responsive: true, displayModeBar: false, displaylogo: false, scrollZoom: false,
  });
}

function keep(element, name) {
  const again = () => draw(element, pageData.figures[name]
    || pageData.figures[name + ' ' + pageData.widths.names[width]]);
  drawn.push(again);
  redraws[name] = again;
  return again();
}

/* ---- one layer ---- */

function rangesFigure(ranges) {
  const order = ranges.channel.map((_, index) => index).sort((a, b) =>
    Math.max(-ranges.low[b], ranges.high[b]) - Math.max(-ranges.low[a], ranges.high[a]));
  const of = (name) => order.map((index) => ranges[name][index]);
  const difference = (high, low) => order.map((i) => ranges[high][i] - ranges[low][i]);
  const hover = order.map((i) => '<b>channel ' + ranges.channel[i] + '</b><br>'
    + number(ranges.low[i]) + ' to ' + number(ranges.high[i])
    + '<br>1 % to 99 %: ' + number(ranges.low_tail[i]) + ' to ' + number(ranges.high_tail[i])
    + (ranges.clip_high ? '<br>codes hold ' + number(ranges.clip_low[i]) + ' to '
      + number(ranges.clip_high[i]) : ''));
  const text = { customdata: hover, hovertemplate: '%{customdata}<extra></extra>' };
  const data = [
    { type: 'bar', name: 'smallest to largest', base: of('low'), y: difference('high', 'low'),
      marker: { color: '@tail' }, ...text },
    { type: 'bar', name: '1 % to 99 %', base: of('low_tail'),
      y: difference('high_tail', 'low_tail'), marker: { color: '@ours' }, ...text },
  ];
  if (ranges.clip_high) {
    const line = { type: 'scatter', mode: 'lines', line: { color: '@warn', width: 1.5, shape: 'hvh' },
      hoverinfo: 'skip', legendgroup: 'clip' };
    data.push({ ...line, name: 'what the codes hold', y: of('clip_high') });
    if (ranges.clip_low.some((value) => value < 0)) {
      data.push({ ...line, showlegend: false, y: of('clip_low') });
    }
  }
  return { data, layout: {
    barmode: 'overlay', bargap: 0, height: 320, hovermode: 'closest',
    margin: { l: 52, r: 8, t: 52, b: 44 },
    legend: { orientation: 'h', x: 0, y: 1.02, yanchor: 'bottom' },
    xaxis: { title: { text: 'channels, the widest first' }, fixedrange: true, showgrid: false },
    yaxis: { title: { text: 'input' }, fixedrange: true, exponentformat: 'power' },
  } };
}

function codesFigure(counts) {
  const largest = (counts.length - 1) / 2;  // codes that nest stand for half a step more
  const total = counts.reduce((sum, count) => sum + count, 0) || 1;
  return { data: [{
    type: 'bar', x: counts.map((_, index) => index - largest), marker: { color: '@weight' },
    y: counts.map((count) => 100 * count / total), customdata: counts,
    hovertemplate: 'code %{x}: %{y:.2f} % (%{customdata})<extra></extra>',
  }], layout: {
    height: 320, margin: { l: 52, r: 8, t: 52, b: 44 }, bargap: counts.length > 40 ? 0 : 0.15,
    xaxis: { title: { text: counts.length % 2 ? 'weight code' : 'weight code + 1/2' }, fixedrange: true, showgrid: false,
      ...(counts.length < 16 ? { dtick: 1 } : {}) },
    yaxis: { title: { text: '% of the weights' }, fixedrange: true },
  } };
}

function number(value) {
  return value === null || value === undefined ? '–' : String(Number(value.toPrecision(3)));
}

function showLayer(name) {
  const layer = pageData.layers[name];
  if (!layer) return;
  document.getElementById('layer-choice').value = name;
  const own = layer.widths ? layer.widths[width] : layer;
  document.getElementById('layer-facts').textContent = own.facts;
  const [ranges, codes] = ['layer-ranges', 'layer-codes'].map((id) => document.getElementById(id));
  const note = document.getElementById('layer-note');
  note.textContent = layer.note;
  if (layer.ranges) draw(ranges, rangesFigure(layer.ranges)); else Plotly.purge(ranges);
  if (own.histogram) draw(codes, codesFigure(own.histogram)); else Plotly.purge(codes);
}

/* ---- one width of several ---- */

function chooseWidth(number) {
  width = number;
  const { names, said } = pageData.widths;
  const slider = document.getElementById('width');
  slider.value = number;
  slider.setAttribute('aria-valuetext', names[number]);
  document.getElementById('width-name').textContent = names[number];
  document.getElementById('width-said').textContent = said[number];
  document.querySelectorAll('table.widths tbody tr').forEach((row, index) => {
    row.classList.toggle('chosen', index === number);
  });
}

function prepareWidths() {
  const slider = document.getElementById('width');
  if (!slider) return;
  const choose = (number) => {
    chooseWidth(number);
    const layer = document.getElementById('layer-choice');
    if (!layer || !redraws.layers) return;  // what is not drawn yet will be of this width
    redraws.layers();
    showLayer(layer.value);
  };
  chooseWidth(Number(slider.max));  // browsers keep where a slider was
  slider.addEventListener('input', () => choose(Number(slider.value)));
  document.querySelectorAll('table.widths tbody tr').forEach((row, index) => {
    row.addEventListener('click', () => choose(index));
  });
}

function prepareLayers() {
  const choice = document.getElementById('layer-choice');
  if (!choice) return;
  const names = Object.keys(pageData.layers);
  choice.addEventListener('change', () => showLayer(choice.value));
  for (const [id, step] of [['layer-before', -1], ['layer-after', 1]]) {
    document.getElementById(id).addEventListener('click', () => {
      const place = names.indexOf(choice.value) + step;
      showLayer(names[(place + names.length) % names.length]);
    });
  }
  const chart = document.querySelector('[data-figure="layers"]');
  chart.on('plotly_click', (event) => showLayer(names[event.points[0].x]));
  for (const row of document.querySelectorAll('tr.link')) {
    row.addEventListener('click', () => {
      showLayer(row.dataset.layer);
      document.getElementById('layer').scrollIntoView({ behavior: 'smooth' });
    });
  }
  drawn.push(() => showLayer(choice.value));
  showLayer(choice.value);
}

/* ---- tables and pictures ---- */

function prepareSorting() {
  for (const head of document.querySelectorAll('th.sortable')) {
    head.addEventListener('click', () => {
      const body = head.closest('table').tBodies[0];
      const column = head.cellIndex;
      const up = head.dataset.order !== 'up';
      head.dataset.order = up ? 'up' : 'down';
      const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
      const rows = [...body.rows].sort((a, b) => {
        const [left, right] = [key(a), key(b)];
        const order = Number(left) - Number(right);
        return (Number.isNaN(order) ? left.localeCompare(right) : order) * (up ? 1 : -1);
      });
      body.append(...rows);
    });
  }
}

function prepareZoom() {
  const dialog = document.getElementById('zoom');
  if (!dialog) return;
  const large = document.createElement('img');
  dialog.append(large);
  dialog.addEventListener('click', () => dialog.close());
  for (const image of document.querySelectorAll('figure img')) {
    image.addEventListener('click', () => {
      Object.assign(large, { src: image.src, alt: image.alt });
      dialog.showModal();
    });
  }
}

async function start() {
  prepareSorting();
  prepareZoom();
  pageData = JSON.parse(await unpack('page-data'));
  prepareWidths();
  const library = document.createElement('script');
  library.textContent = await unpack('plotly');
  document.head.append(library);
  for (const element of document.querySelectorAll('[data-figure]')) {
    await keep(element, element.dataset.figure);
  }
  prepareLayers();
  let wide = window.innerWidth;
  const again = () => drawn.forEach((drawing) => drawing());
  window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', again);
  window.addEventListener('resize', () => {
    if (window.innerWidth !== wide) { wide = window.innerWidth; again(); }
  });
  document.documentElement.dataset.drawn = 'yes';
}

start().catch((error) => {
  const note = document.createElement('p');
  note.className = 'problem';
  note.textContent = 'The figures cannot be drawn in this browser (' + error
    + '); a browser from 2023 or later is needed. The tables are complete.';
  document.body.prepend(note);
  document.documentElement.dataset.drawn = 'failed';
});
