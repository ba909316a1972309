"""One tiny frame for each compressed transfer syntax, for `inference.decode.self_test`.

All show the same 16 x 16 ramp, ``500 + 100 * x + 20 * y`` (a sixteenth of it in 8 bit), encoded by software
other than the decoder where there is one: DCMTK 3.6.7, Pillow, and OpenJPEG and OpenJPH through imagecodecs
(JPEG Extended: libjpeg-turbo, the decoder's own encoder). No patient data: the ramp is computed.
Base 85 (`base64.b85decode`).
"""

from __future__ import annotations

PROBES: dict[str, str] = {
    # RLE Lossless (DCMTK)
    "1.2.840.10008.1.2.5": (
        "0ssI2KmY&$IspIx000000000000000000000000000000000000000000000000000000000000000000s#U7{sRF71pWm91_u"
        "5I{sR630R#m81px*I{s;a70Rsd61OWvF{s#UB{sI951O5a71qJ>F0tW{O0RjU40|5jC{ssO90tW{O0RjU40|5jC{sjRB2L1;C2"
        "mt~D{sRF71pWm91_u5I00;vD0s{m71OWvF{s#UB00;vD0s{m71OWvF{ssXD2mc5F0{#O51O)yC{ssXD2mc5F0{#O51O)yC0R{&"
        "C2mc5F0{#O51O)yC0R{&C2mc5H0s{m71OWvF{s#UB{|EvC0|Wj90R;vA1_1{L{s{g90R#m81^xyB2M7KL{sRF71pWm91_u5I{s"
        "<5BSiB&F=uEH_c-%mw2yD;~2yD<anEYVGD2(t_xEz4w4;+BxNURWa*gT*FXv{E__zy6Y_*}pwi0n|b7<}MFs0<H8s0?t_IGg}v"
        "$SjcbSiB$)SiB&F=uEH_c-%mw2yD<a4{XphnEYVGD2(t_xEz4wNDqMINURWa*gT*FXv{E__*@T^_*}pwi0n|b7<}MFs0?rqs0?"
        "t_IGg}v$SjcbSiB&F54<3R=uEH_c-%mw2yD<am=Dl2nEYVGD2(t_xEz4wNURU!NURWa*gT*FXv{E__*}pb_*}pwi0n|b7<}MFs"
        "0?t_4-9bBIGg}v$SjcbSiB&F=no)-=uEH_c-%mw2yD<anEU"
    ),
    # JPEG Baseline, 8 bit (Pillow)
    "1.2.840.10008.1.2.4.50": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV009930RaI40RaI40RaI40s#R50RaL50RaL60s;a80s;a90|WyD0|NsB0s{mC0|W#F1Ox"
        "&D1qB2I1q1{H1pmMQ3kU!Z01yEI5di<h03QGV0R;g80RaI400000000000RjUA1qKHQ2?`7U!~nGr00IF60|EpC1qB2I0004f0"
        "RjU61Q7)iAu&M)6H#FYB5@QlfsvsIBSNvk6;jdgBr{@if(Z&17Z@2DB_<~*DJnEIHa9pqIzvQ7Mn_0VN>fx-R##YAT4Q8oW@l("
        "=YIAgTc6WGrdV_?8hKGoWijtF*m6n&7nVO=bq@|{(sHv*5v$VCgx45~w!o$SH#>dFX%F@%+)z;V8+1laa<K*S$=jiF`@$&QZ_4"
        "fDp`TGCb00;pA002J#{&GGB=^ydu^8WyLw@Uqx_#32u$Dhmn-rXzm{{Y}_k^cZ5e=qlYbg$VDfx1WhdHlcK?b5&h*#"
    ),
    # JPEG Extended, 12 bit (libjpeg-turbo)
    "1.2.840.10008.1.2.4.51": (
        "|JeWF01!$>Nk#wx0RR9200961|JwjV009930RaI40RaI40RaI40s#R50RaL50RaL60s;a80s;a90|WyD0|NsB0s{mC0|W#F1Ox"
        "&D1qB2I1q1{H1pmPR3k(1d01yEI5di<h02KfM0RR9100000000000000D4*$de91s8i1_J;90000000000000093nn;3Rbg}g+"
        "5iXv0RR9$0Gz)=gruSaX9ZJ+gCGcSl$1bh;Hq%YFZ~V@l86nQ6;2uqfFZ(CQ311psl!A6*#"
    ),
    # JPEG Lossless, selection value 6 (DCMTK)
    "1.2.840.10008.1.2.4.57": (
        "|JeWF01!$>Nk#wx0RR9200961|HA+a5C9MW5CH)Z0RO}Q7XSeP0RaF20000000000000C92M_<+00;pA00sa6;68gM$+B#lCds"
        "mFn<mM!Y?~&@vQ$!(r722Ml%*+E6s0LjQk11BN>xQEN>Y@iDN0h6QA$#jr722Ml%-Tsl%*+3Qk11BRTQNuN>Y@iDN0pEDN0h5r"
        "722Ml~GDkl%*+3Qk11sQk11BN>Y@iDOD7uDN0h5r722PMJY;Bl%*+3Qk79kQk11BN>Y@iR8o|sDN0h5r72Yur722Ml%*+3RYfU"
        "EQk11BN>Y{o|Je"
    ),
    # JPEG Lossless SV1 (DCMTK)
    "1.2.840.10008.1.2.4.70": (
        "|JeWF01!$>Nk#wx0RR9200961|HA+a5C9MW5CH)Z0RO}Q761VO0RR910000000000000LC5C7T#2mt{A0RRBNeAyWp85tQF85t"
        "QF85tQFDl#%MGBPqUGBPqUGBPqURAgjiWMpJyWMpJyWMpJysL063$jHdZ$jHdZ$jHdaQIV06k&%&+k&%&+k&%&-qa!0DBO@atB"
        "O@atBO@avMn*<PMn*<PMn*<PMn*<TjEszojEszojEszojEszx85tQF85tQF85tQF85tQWGBPqUGBPqUGBPqUGBPq$WMpJyWMpJ"
        "yWMpJyWMpKh$jHdZ$jHdZ$jHdZ$jHf2k&%&+k&%&+k&%&+k&%+4BO@atBO@atBO@atBO@h7Mn*<PMn*<PMn*<PMn+1EjEszojE"
        "szojEszojEtZE|Je"
    ),
    # JPEG-LS Lossless (DCMTK)
    "1.2.840.10008.1.2.4.80": (
        "|JeWc01FTR5C9MX0TBTI_y7$7|Nj6I07C&306_oR00;pA00000etC~EY&!<O-tPB1eXh@Auh#0}L@0#OBt;;PM<Y>*X-O#v=ur"
        "wIqa!0CrAn0|M2Qk3LTF7IG-%PIMvW3ANRcFoB1t5YNhFd<B$7!Yh@vQ>iYTIrD58oeqL4@;iYTQiN>Y@iDD-+#l%WVh5QHHJ<"
        "Z=*%AqYYd5fK`VL_|bHL_|bJBM}i15fKp)C8ea2NhFd<Nl7G<NhFd=N=a2!RD^|9RaHkvRag9Q|Je"
    ),
    # JPEG-LS Near-lossless, error 2 (DCMTK)
    "1.2.840.10008.1.2.4.81": (
        "|JeWc01FHN5C9MX0TBTI+5iXv0RRF3000Hcr%IhFRH)LUMvV$IIK~m(-PwqVv5mIdZM54M+ij$&S8}SAB_)JZu~k(gsMw?Dz0="
        "3P{ont4KmTWc|7`z%iT`~Q|9Wr#c|ZRk|Je"
    ),
    # JPEG 2000 Lossless (OpenJPEG)
    "1.2.840.10008.1.2.4.90": (
        "|4;u>04V?f0000G0000G00000000000000G0000G0000000000009dD0sm3}3;+NC0RR951ONg5TmS?>VE<$QB>(|Ka%Ew3Wn>"
        "^?c_2@4Wo}APMMofZWpZ<AZ*CwmE;TMR|BwI*000000R{j8|C7(=^$}1`y(i2;Dwu{+;Hpw?7e{F%Lz;>?grESPN+>#y!;^bnN"
        "GGP<M_6#E`$w0&gY%Ep9{q>yZI<aj{GiR2jT0n2AJwuAL9Md@>6N&&YOFRU!-1NSt|fC%)g_5s)~Kk6CL1`P?4Th(&}@Z<6Uu@"
        ")B=RxLq1?mk@bwZa@w`VQpXCC=IVAF+m||*cB*BtrQ!o+^_Z?ItY7uk~(qPFmsh0r;sWYjV5={uGG#BlOYl&-#<nw6T64w&q*Y"
        "d<+t~SKf5>T-iYmKo35CX2Ms;a80rD~e0s;a80TYVyN6NsEd-t+Mjh@3>>{VFrT|9}74"
    ),
    # JPEG 2000 (OpenJPEG)
    "1.2.840.10008.1.2.4.91": (
        "|4;u>04V?f0000G0000G00000000000000G0000G0000000000009dD0sm3}4FLiG0RR951ONbt|6BkCLSO*@WB?@q0Yh?SVRU"
        "6=AYyqSPjF>!N>D{dAa-SPb7^mGATlmBE;Rp;015yA0002u00IA#&%V(SP)@xk%t0!chEm|FQf?PVX(U6MiaCU!0G>)HI*-GXd"
        "tOK<rrk$aaH#u7m%M}XkJcXjhwW{a=|B9S&6bT5Bt0M1vJFA4vjFLpxU_1lHYUS?nvt$0b5GSJiCosGsE8&TIG^mGAwSS;g@zN"
        "#f;lAeG0dUd!|U+%5-ah%M<k!+0>U{Y@}QVvYHK9Hl4nye5)StrR3mB;bPv*C$up^!0S2ivshAQ?2&gm{?TKrNYl-CZXxkFk65"
        "`kL#9^*B#MBZ{u^4NOu>%kS|Je"
    ),
    # HTJ2K Lossless, RPCL order, so it serves for 4.202 too (OpenJPH)
    "1.2.840.10008.1.2.4.201": (
        "|4;u>04YEK0000G0000G00000000000000G0000G0000000000009pH0sl|{2mk^A000XAQUDA90ssL31q1{@0smY86Cj9?kdT"
        "m&kdTm&kdTmwh=~7W02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00000d;kIelfVEb&G!WdbN~Rr0206e5`ZEChjajJ0f%$|z"
        "yK3K022U?9RdP$0JO9KLsS6302MF*1yI1iz`&|;f^`5`48#7w5P|Hr0Kfn%-~bkYMx)VaG#ZWP%6fWn0(bzXF~%5U{{4Ued-eb"
        "U?79H|*#"
    ),
    # HTJ2K irreversible (OpenJPH)
    "1.2.840.10008.1.2.4.203": (
        "|4;u>04YEK0000G0000G00000000000000G0000G0000000000009pH0sl|{2mk^A001ZdQUDA90ssL31q1{@0RLP7BO;t#oHv"
        "{|oD!5tlu48^jEIbgjGTobg&~EFeD-|ye3}1b02crOPjF>!N>E53R%LP^FfKASE;BCwkN^q*00000i2worlfVE8z@Gs928VP20"
        "KfnezyK0}76ONK0B8Y+bO68rDj)z8fC&le>HxyD009^P07kR`zyMdk09F8$rpfJ6I!&(oGE2&vb^v1NphH7IIVrp9Hvqr@wV(i"
        "0fMf;{&LF}WL^y-^T$TKl{FVMIi+cb9{{4sV-|V*l|Je"
    ),
}
