"""How a report looks: colours for light, dark and paper;
one column on a phone, two on a desk. The hover line is extra."""

from __future__ import annotations

_LIGHT = """
--page:#faf8f5; --card:#ffffff; --ink:#1d1b26; --soft:#5d5a6b; --line:#e6e2dc; --grid:#efece7; --code:#f4f1ec;
--indigo:#4453c9; --amber:#c8590f; --violet:#8544b8; --teal:#0b7d78; --green:#2f7d32; --rose:#b8325e; --bad:#c62828;
 --good:#23753a;
"""
_DARK = """
--page:#131219; --card:#1b1a23; --ink:#eceaf4; --soft:#a3a0b3; --line:#302e3b; --grid:#282632; --code:#24222e;
--indigo:#8f9bff; --amber:#ff9d57; --violet:#c893f2; --teal:#4fcfc6; --green:#7ccf80; --rose:#ff85a9; --bad:#ff7b72;
 --good:#6fd58a;
"""

CHART_CSS = """
.chart{font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
 font-variant-numeric:tabular-nums}
.chart .title{font-size:15px;font-weight:650;fill:var(--ink)} .chart .unit{font-size:12px;font-weight:400;
 fill:var(--soft)}
.chart .tick,.chart .label{font-size:12px;fill:var(--soft)}
.chart .grid{stroke:var(--grid);stroke-width:1} .chart .axis{stroke:var(--line);stroke-width:1.25}
.chart .curve{fill:none;stroke:var(--hue);stroke-width:2.25;stroke-linejoin:round;stroke-linecap:round}
.chart .faint{stroke-width:1;stroke-opacity:.32} .chart .error{fill:none;stroke:var(--hue);stroke-width:1.25;
 stroke-opacity:.6}
.chart .dot{fill:var(--card);stroke:var(--hue);stroke-width:2.25}
.chart .level{stroke:var(--soft);stroke-width:1;stroke-dasharray:3 4;stroke-opacity:.8}
 .chart .level-label{font-size:11.5px;fill:var(--soft)}
.chart .mark{fill:var(--bad)} .chart .hover{pointer-events:none} .chart .hover line{stroke:var(--soft);
 stroke-width:1;stroke-opacity:.7}
.chart .hover text{font-size:12px;font-weight:600;fill:var(--ink);paint-order:stroke;stroke:var(--card);
 stroke-width:4px;stroke-linejoin:round}
.chart .hover circle{fill:var(--hue)}
.indigo{--hue:var(--indigo)} .amber{--hue:var(--amber)} .violet{--hue:var(--violet)} .teal{--hue:var(--teal)}
.green{--hue:var(--green)} .rose{--hue:var(--rose)}
"""

PICTURE_CSS = (
    f"svg{{{_LIGHT}}} @media (prefers-color-scheme:dark){{svg{{{_DARK}}}}}"
    + CHART_CSS
    + """
.card{fill:var(--card);stroke:var(--line)} .name{font-size:20px;font-weight:700;fill:var(--ink)}
.words{font-size:14px;fill:var(--soft)} .big{font-size:30px;font-weight:700;fill:var(--ink)}
text{font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
 font-variant-numeric:tabular-nums}
"""
)

PAGE_CSS = (
    f":root{{color-scheme:light dark;{_LIGHT}}} @media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    + CHART_CSS
    + """
*{box-sizing:border-box} html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);line-height:1.55;font-size:16px;
 font-family:ui-sans-serif,system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
.dawn{height:5px;background:linear-gradient(90deg,#3b3a8f,#8544b8 30%,#d9467a 52%,#f08a3c 76%,#ffd166)}
main,header,footer{max-width:1180px;margin:0 auto;padding:0 24px}
header{padding-top:30px} .top{display:flex;gap:14px;align-items:center;flex-wrap:wrap}
.top svg{flex:none} h1{font-size:30px;line-height:1.15;margin:0;letter-spacing:-.02em;overflow-wrap:anywhere}
.pill{font-size:13px;font-weight:600;padding:2px 11px;border-radius:99px;border:1px solid currentColor}
.done{color:var(--good)} .running{color:var(--indigo)} .failed,.killed{color:var(--bad)} .stopped{color:var(--amber)}
.sub{color:var(--soft);margin:8px 0 0}
.verdict{display:grid;grid-template-columns:minmax(280px,5fr) 7fr;gap:20px;margin:24px 0 20px}
.card{background:var(--card);border:1px solid var(--line);border-radius:14px;min-width:0}
.score{padding:20px 22px;display:flex;flex-direction:column;justify-content:center} .score .what,.tile
dt{color:var(--soft);font-size:14px;margin:0} .score
.value{font-size:46px;line-height:1.15;font-weight:700;letter-spacing:-.03em;
 font-variant-numeric:tabular-nums;margin:2px 0 6px}
.score .value small{font-size:20px;font-weight:500;color:var(--soft);letter-spacing:0;white-space:nowrap}
.score p{margin:0;color:var(--soft);font-size:14.5px}
.tiles{display:grid;grid-template-columns:repeat(3,1fr);gap:1px;background:var(--line);overflow:hidden;margin:0}
.tile{background:var(--card);padding:14px 18px;display:flex;flex-direction:column;justify-content:center}
.tile dd{margin:0;font-size:21px;font-weight:650;font-variant-numeric:tabular-nums;letter-spacing:-.01em}
.tile dd small{display:block;font-size:13px;font-weight:400;color:var(--soft);letter-spacing:0}
.charts{display:grid;grid-template-columns:1fr 1fr;gap:20px} .charts .card{padding:6px 6px 4px}
.chart{display:block;width:100%;height:auto} .narrow{display:none}
h2{font-size:20px;letter-spacing:-.01em;margin:38px 0 12px}
.hint{color:var(--soft);margin:-6px 0 14px;font-size:14.5px}
.samples{display:grid;grid-template-columns:1fr 1fr;gap:14px}
.sample{padding:14px 18px;margin:0;white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:isolate;
 font-family:"Iowan Old Style","Palatino Linotype",Palatino,Georgia,serif;font-size:16px;line-height:1.6}
.sample b{color:var(--amber);font-weight:600}
details{margin:12px 0} summary{cursor:pointer;font-weight:600;padding:6px 0;color:var(--soft)}
 summary:hover{color:var(--ink)}
.two{display:grid;grid-template-columns:1fr 1fr;gap:20px;align-items:start}
.two>.card{padding:16px 20px} h3{font-size:15px;margin:0 0 8px}
table{border-collapse:collapse;width:100%;font-size:14px} td,th{padding:5px 0;border-top:1px solid var(--grid);
 vertical-align:top;text-align:left}
tr:first-child>*{border-top:0} th{font-weight:400;color:var(--soft);padding-right:16px;width:44%;
 overflow-wrap:anywhere}
td{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.9em;background:var(--code);
 padding:1px 5px;border-radius:5px;overflow-wrap:anywhere}
ul.notes{margin:0;padding-left:18px;font-size:14.5px} ul.notes li{margin:3px 0;overflow-wrap:anywhere}
.scores{padding:8px 18px;overflow-x:auto} .scores th,.scores td{width:auto;white-space:nowrap;padding-right:20px;overflow-wrap:normal}
.warning{border-color:var(--bad);padding:12px 18px;margin:0 0 20px} .stack{display:grid;gap:20px;min-width:0}
 .stack>.card{padding:16px 20px}
footer{color:var(--soft);font-size:13.5px;padding-top:34px;padding-bottom:40px}
@media (max-width:760px){
 main,header,footer{padding-left:14px;padding-right:14px} header{padding-top:20px} h1{font-size:24px}
 .verdict,.charts,.samples,.two{grid-template-columns:minmax(0,1fr)} .verdict,.charts,.two,.stack{gap:14px}
 .tiles{grid-template-columns:1fr 1fr} .tile{padding:11px 14px} .tile dd{font-size:19px}
 .wide{display:none} .narrow{display:block} .score .value{font-size:40px}
}
@media print{
 """
    + f":root{{color-scheme:light;{_LIGHT} --page:#fff}}"
    + """
 body{font-size:10.5pt} .tile dd{font-size:13pt} .score .value{font-size:28pt}
 main,header,footer{max-width:none;padding-left:0;padding-right:0} .wide{display:block} .narrow{display:none}
 .verdict{grid-template-columns:5fr 7fr} .charts,.two,.samples{grid-template-columns:1fr 1fr;gap:10px}
 .tiles{grid-template-columns:repeat(3,1fr)}
 .card{break-inside:avoid;border-radius:6px} h2{break-after:avoid} .dawn{print-color-adjust:exact;
 -webkit-print-color-adjust:exact}
 details::details-content{content-visibility:visible;display:block;height:auto} summary{list-style:none}
 @page{margin:14mm}
}
"""
)

# Reads the curves' own paths back, so the page carries its numbers once. Without scripts the page is complete.
HOVER_JS = """
document.querySelectorAll('.chart').forEach(chart=>{
 const plot=chart.querySelector('.plot');if(!plot)return;
 let curves=[...plot.querySelectorAll('.curve:not(.faint)')];
 if(!curves.length)curves=[...plot.querySelectorAll('.curve')];if(!curves.length)return;
 if(!curves[0].closest('g'))curves=curves.slice(-1);
 const points=curves.flatMap(c=>{const g=c.closest('g');return c.getAttribute('d').slice(1).split('L').map(p=>
 [...p.split(',').map(Number),g?g.dataset.name:'',g?g.getAttribute('class'):''])});
 const [x0,x1,y0,y1]=plot.dataset.range.split(' ').map(Number),[left,w,h]=plot.dataset.box.split(' ').map(Number),
 [xl,yl]=plot.dataset.log.split(' ').map(Number),between=(a,b,f,log)=>log?a*(b/a)**f:a+f*(b-a);
 const make=(tag)=>document.createElementNS(chart.namespaceURI,tag),group=make('g'),line=make('line'),
 dot=make('circle'),text=make('text');
 line.setAttribute('y1',0);line.setAttribute('y2',h);dot.setAttribute('r',4);text.setAttribute('y',14);
 group.append(line,dot,text);
 const show=v=>v>=1e12?v.toPrecision(3):Math.abs(v)>=1000?Math.round(v).toLocaleString('en'):+v.toPrecision(4)+'';
 chart.addEventListener('pointermove',event=>{
  const box=chart.getBoundingClientRect(),scale=chart.viewBox.baseVal.width/box.width,
 at=(event.clientX-box.left)*scale-left,
 down=(event.clientY-box.top)*scale-plot.y.baseVal.value-5;
  if(at<-6||at>w+6){group.remove();return}
  const far=p=>Math.abs(p[0]-at)+(curves.length>1?Math.abs(p[1]-down)*.5:0),
 p=points.reduce((a,b)=>far(b)<far(a)?b:a);
  group.setAttribute('class','hover '+p[3]);
  line.setAttribute('x1',p[0]);line.setAttribute('x2',p[0]);dot.setAttribute('cx',p[0]);dot.setAttribute('cy',p[1]);
  const right=p[0]>w/2;text.setAttribute('text-anchor',right?'end':'start');text.setAttribute('x',p[0]+(right?-8:8));
  text.textContent=(p[2]?p[2]+': ':'')+show(between(y0,y1,(h-p[1])/h,yl))+' at '+plot.dataset.x+' '
 +show(between(x0,x1,p[0]/w,xl));
 plot.append(group)});
 chart.addEventListener('pointerleave',()=>group.remove())});
"""

LOGO = (
    '<svg width="44" height="44" viewBox="0 0 44 44" aria-hidden="true"><defs><linearGradient id="sun" x1="0" y1="0" x2="0" y2="1">'
    '<stop offset="0" stop-color="#ffc453"/><stop offset="1" stop-color="#ee6c3d"/></linearGradient></defs>'
    '<path d="M10 31a12 12 0 0 1 24 0z" fill="url(#sun)"/><g stroke="#f08a3c" stroke-width="2.4" stroke-linecap="round">'
    '<path d="M22 8v5M8.6 13.6l3.5 3.5M35.4 13.6l-3.5 3.5"/></g><path d="M4 35h36M10 40h24" stroke="var(--indigo)"'
    ' stroke-width="2.4" stroke-linecap="round"/></svg>'
)
